From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention Mlp.
From Growproof Require Import Experts RmsNorm LayerNorm Decoder.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.

(******************************************************************************)
(*  same n x y == x and y hold the same below n.                              *)
(*  centred_layer D l, centred m == l, m with their writers centred: the rows *)
(*            of the embedding, the columns of o_proj and down_proj, and the  *)
(*            biases of these lose their mean.                                *)
(*  mean_blind D n == the norm n does not see the mean: any LayerNorm is.     *)
(******************************************************************************)

Notation same n := (agree n id).

Definition extensional (A : arith) n (f : vec A -> vec A) :=
  forall x y, same n x y -> same n (f x) (f y).

Section Extensional.
Variables (A : arith) (softmax : seq A -> seq A).
Variables (mask : nat -> nat -> A -> A) (T : nat).

Lemma padded_same n (x y : vec A) : same n x y -> padded n n id x y.
Proof. by split=> // j j_lt; rewrite img_id j_lt. Qed.

Lemma prodmap_id n a : prodmap n n id id a = a.
Proof. by rewrite /prodmap -divn_eq. Qed.

Lemma affine_same D W b (x y : vec A) : same D x y -> affine D W b x =1 affine D W b y.
Proof. by move=> xy o; congr (_ +. _); apply: eq_osum => i /xy->. Qed.

Lemma grown_refl d qn kn (p : attn A) : extensional (qry d) qn -> extensional (kv d) kn ->
  attn_grown d d id id id id qn qn kn kn p p.
Proof.
move=> qnP knP; have no m j : j < m -> ~~ img m id j -> False.
  by move=> j_lt; rewrite img_id j_lt.
have W D (W0 : mat A) (b x x' : vec A) : padded D D id x x' -> forall o, affine D W0 b x' o = affine D W0 b x o.
  by move=> xx o; rewrite (affine_same _ _ xx.1).
split=> [x x' xx h h_lt|x x' xx h h_lt k k_lt|x x' xx h h_lt k k_lt|o a|i /no//||a a_lt].
- split=> [k k_lt|k /no//]; apply: (qnP _ _ _ (h * lane d + k)); last exact: flat_lt.
  by move=> a _; apply: W.
- apply: (knP _ _ _ (h %/ rep d * lane d + k)); last by rewrite flat_lt ?divn_lt.
  by move=> a _; apply: W.
- exact: W.
- by rewrite prodmap_id.
- exact: padded_same.
by case/imgP; exists a; rewrite ?prodmap_id.
Qed.

Lemma attention_same d rot scale qn kn p x y t :
  (forall t, respects (lane d) (lane d) id (rot t) (rot t)) ->
  extensional (qry d) qn -> extensional (kv d) kn ->
  (forall t, t < T -> same (hid d) (x t) (y t)) -> t < T ->
  same (hid d) (attention softmax mask T d rot scale qn kn p x t)
               (attention softmax mask T d rot scale qn kn p y t).
Proof.
move=> rotP qnP knP xy t_lt; have idP n := emb_id (leqnn n).
apply: (proj1 (attention_grown softmax mask (idP _) (idP _) (idP _)
  rotP _ _ _ (grown_refl p qnP knP) _ t_lt)) => // t' t'_lt.
exact/padded_same/xy.
Qed.

Lemma mlp_same g f D F p (x y : vec A) : same D x y ->
  same D (mlp g f D F p x) (mlp g f D F p y).
Proof.
move=> xy i _; apply: affine_same => u _.
by rewrite /hidden !(affine_same _ _ xy).
Qed.

Lemma ff_same m (l : layer A) x y : same (hid (dm m)) x y ->
  same (hid (dm m)) (ff_out m l x) (ff_out m l y).
Proof.
rewrite /ff_out; case: (ff l) => [p|s] xy; first exact: mlp_same.
by move=> i _; apply/esym/sparse_same => j j_lt; apply/esym; apply: xy.
Qed.

End Extensional.

Local Open Scope ring_scope.

Section CentredWeights.
Variables (R : rcfType) (D : nat).

Definition centred_columns (W : nat -> nat -> R) : nat -> nat -> R :=
  fun i a => centre D (W^~ a) i.
Definition centred_attn (p : attn (ring_arith R)) := Attn (wq p) (bq p) (wk p) (bk p)
  (wv p) (bv p) (centred_columns (wo p)) (centre D (bo p)).
Definition centred_mlp (p : mlp_weights (ring_arith R)) := MlpWeights (wg p) (bg p)
  (wu p) (bu p) (centred_columns (wd p)) (centre D (bd p)).

Definition centred_feed (p : feed (ring_arith R)) := match p with
  | Dense p => Dense (centred_mlp p)
  | Sparse s => Sparse (Experts (many s) (width s) (route s) (wr s)
      (fun e => centred_mlp (expert s e)))
  end.

End CentredWeights.

Section Centred.
Variables (R : rcfType).
Variables (softmax : seq (ring_arith R) -> seq (ring_arith R)) (T : nat).
Variable m : model (ring_arith R).
Let D := hid (dm m).
Hypothesis D_gt0 : (0 < D)%N.
Implicit Types (x y : nat -> R) (l : layer (ring_arith R)).

Notation cent x y := (@agree (ring_arith R) D id (centre D x) y).

Definition mean_blind (n : (nat -> R) -> nat -> R) := forall x y,
  cent x y -> @agree (ring_arith R) D id (n x) (n y).
Definition keeps_mean (p : (nat -> R) -> nat -> R) := forall x y,
  cent x y -> cent (p x) (p y).

Definition centred_layer l :=
  Layer (n1 l) (p1 l) (n2 l) (p2 l) (qn l) (kn l) (rot l) (mask l)
    (centred_attn D (att l)) (centred_feed D (ff l)).
Definition centred := Model (dm m) (units m) (scale m) (act m) (gated m) (parallel m)
  id (fun v => centre D (fun i => times m (table m v i)))
  (omap (fun q t => centre D (q t)) (positions m)) (map centred_layer (layers m))
  (nf m) (lm_head m) (lm_bias m) (cap m).

Lemma eq_centre x y i : (i < D)%N -> @agree (ring_arith R) D id x y ->
  centre D y i = centre D x i.
Proof. by move=> i_lt xy; rewrite /centre /mean (eq_rsum xy) xy. Qed.

Lemma layernorm_mean_blind eps w b : mean_blind (ln D eps w b).
Proof.
move=> x y xy i i_lt; rewrite -(centring_behind_layernorm D_gt0 eps w b x i_lt).
exact: eq_ln.
Qed.

Lemma cent_add x y u v : cent x y -> cent u v -> cent (fun i => x i + u i) (fun i =>
  y i + v i).
Proof. by move=> xy uv i i_lt; rewrite xy ?uv // centreD. Qed.

Lemma cent_same x y z : @agree (ring_arith R) D id x y -> cent y z -> cent x z.
Proof. by move=> xy yz i i_lt; rewrite yz // (eq_centre i_lt xy). Qed.

(** What centring asks of a layer: its norms do not see the mean, what follows its
    writers keeps it, the rest looks at no lane that it does not have. *)
Record blind l := Blind {
  n1_blind : mean_blind (n1 l); n2_blind : mean_blind (n2 l);
  p1_keeps : keeps_mean (p1 l); p2_keeps : keeps_mean (p2 l);
  qn_ext : @extensional (ring_arith R) (qry (dm m)) (qn l);
  kn_ext : @extensional (ring_arith R) (kv (dm m)) (kn l);
  rot_same : forall t, respects (lane (dm m)) (lane (dm m)) id (rot l t) (rot l t) }.

Lemma centred_sparse g f (s : experts (ring_arith R)) x i :
  sparse g f D (Experts (many s) (width s) (route s) (wr s)
    (fun e => centred_mlp D (expert s e))) x i = centre D (sparse g f D s x) i.
Proof.
rewrite /sparse /chosen /=; set c := nth _ _; elim: (many s) => [|n IHn].
  by rewrite /centre /mean /rsum osum0 // mul0r subr0.
rewrite /dot [LHS]/= [osum n _]IHn [X in _ + X * _]centred_writer /centre.
rewrite [X in _ = _ - X](meanD _ _ (fun i => mlp g f D (width s) (expert s n) x i * c n)).
by rewrite meanZ opprD [RHS]addrACA -mulrBl.
Qed.

Lemma att_cent l (x y : nat -> nat -> R) t : blind l ->
  (forall t, (t < T)%N -> @agree (ring_arith R) D id (x t) (y t)) -> (t < T)%N ->
  cent (att_out softmax T m l x t) (att_out softmax T centred (centred_layer l) y t).
Proof.
move=> lb xy t_lt; apply: cent_same
  (attention_same _ _ _ _ (rot_same lb) (qn_ext lb) (kn_ext lb) xy t_lt) _ => i _.
exact: centred_writer.
Qed.

Lemma ff_cent l x y : @agree (ring_arith R) D id x y ->
  cent (ff_out m l x) (ff_out centred (centred_layer l) y).
Proof.
move=> xy; apply: cent_same (ff_same l xy) _ => i _; rewrite /ff_out /=.
by case: (ff l) => [p|s] /=; [apply: centred_writer | apply: centred_sparse].
Qed.

Lemma block_cent l (x y : nat -> nat -> R) : blind l ->
  (forall t, (t < T)%N -> cent (x t) (y t)) -> forall t, (t < T)%N ->
  cent (block softmax T m x l t) (block softmax T centred y (centred_layer l) t).
Proof.
move=> lb xy t t_lt; have aa := cent_add (xy t t_lt) (p1_keeps lb (att_cent lb
  (fun t' t'_lt => n1_blind lb (xy t' t'_lt)) t_lt)).
apply: (cent_add aa (p2_keeps lb (ff_cent _ _))) => /=; case: parallel.
  exact: (n2_blind lb) (xy t t_lt).
exact: (n2_blind lb) aa.
Qed.

Hypotheses (layers_blind : List.Forall blind (layers m)) (nf_blind : mean_blind (nf m)).
Variable tok : nat -> nat.

Lemma fold_cent s (u v : nat -> nat -> R) : List.Forall blind s ->
  (forall t, (t < T)%N -> cent (u t) (v t)) -> forall t, (t < T)%N ->
  cent (foldl (block softmax T m) u s t)
       (foldl (block softmax T centred) v (map centred_layer s) t).
Proof.
elim: s u v => [|l s IHs] u v //= /List.Forall_cons_iff[lb sb] uv.
by apply: IHs sb _; apply: block_cent.
Qed.

Lemma residual_cent t : (t < T)%N ->
  cent (residual softmax T m tok t) (residual softmax T centred tok t).
Proof.
apply: fold_cent layers_blind _ t => t _; rewrite /start /embedded /=.
by case: positions => [q|] //; apply: cent_add.
Qed.

(** MAIN 8 centred_logits: Centring all writers of a decoder whose norms are
    LayerNorms (or do not see the mean for another reason) leaves its logits as
    they are. *)
Theorem centred_logits t v : (t < T)%N ->
  logits softmax T centred tok t v = logits softmax T m tok t v.
Proof.
move=> t_lt; congr (cap m (_ +. _)); apply: (@eq_osum (ring_arith R)) => i i_lt.
by congr (_ * _); apply: nf_blind (residual_cent t_lt) _ i_lt.
Qed.

End Centred.

Section Streams.
Variables (R : rcfType) (T : nat).
Variables (softmax : seq (ring_arith R) -> seq (ring_arith R)).
Variables (m m' : model (ring_arith R)) (ed : nat -> nat).
Let D := hid (dm m). Let D' := hid (dm m').
Hypotheses (D_gt0 : (0 < D)%N) (edP : emb D D' ed).
Let r : R := D%:R / D'%:R.
Let mean0 (x : nat -> R) := mean D x = 0.

(** MAIN 8 rmsnorm_grows: RMSNorm, scaled as in 6, is a norm that the decoder
    theorems ask for. *)
Theorem rmsnorm_grows P eps (w w' : nat -> R) :
  (forall i, (i < D)%N -> w' (ed i) = w i * Num.sqrt r) ->
  norm_grown (A := ring_arith R) P ed m m' (rms D eps w) (rms D' (eps * r) w').
Proof. by move=> ww x x' _; apply: rmsnorm_scaled. Qed.

(** MAIN 8 layernorm_grows: LayerNorm, scaled as in 7, is a norm that the
    decoder theorems ask for, on streams of mean zero. *)
Theorem layernorm_grows eps (w w' b b' : nat -> R) :
  (forall i, (i < D)%N -> w' (ed i) = w i * Num.sqrt r) -> rpadded D D' ed b b' ->
  norm_grown (A := ring_arith R) mean0 ed m m' (ln D eps w b) (ln D' (eps * r) w' b').
Proof. by move=> ww bb x x' x0; apply: layernorm_zero_mean. Qed.

(** MAIN 8 centred_streams: In a centred decoder whatever is written to the
    stream has mean zero, and so has the stream. *)
Theorem centred_streams :
  [/\ forall t v, mean0 (embedded (centred m) t v),
      forall l x t, mean0 (att_out softmax T (centred m) (centred_layer m l) x t),
      forall l x, mean0 (ff_out (centred m) (centred_layer m l) x)
    & forall x y, mean0 x -> mean0 y -> mean0 (fun i => x i + y i)].
Proof.
have c0 x y : (forall i, y i = centre D x i) -> mean0 y.
  by move=> xy; rewrite /mean0 /mean (eq_rsum (fun i _ => xy i)); apply: mean_centre.
have addP x y : mean0 x -> mean0 y -> mean0 (fun i => x i + y i).
  by move=> x0 y0; rewrite /mean0 meanD x0 y0 addr0.
split=> // [t v|l x t|l x].
- rewrite /embedded /=; case: positions => [q|]; last exact: mean_centre.
  by apply: addP; apply: mean_centre.
- by apply: c0 => i; apply: centred_writer.
rewrite /ff_out /=; case: (ff l) => [p|s] /=; apply: c0 => i.
  exact: centred_writer.
exact: centred_sparse.
Qed.

End Streams.

(** MAIN 8 layernorm_decoder_lossless: A decoder with LayerNorms that is centred
    and then grown has the logits that it had before. *)
Theorem layernorm_decoder_lossless (R : rcfType)
    (softmax : seq (ring_arith R) -> seq (ring_arith R))
    T V ed hm e ef ev c f (m m' : model (ring_arith R)) :
  (0 < hid (dm m))%N -> List.Forall (blind m) (layers m) -> mean_blind m (nf m) ->
  model_grown softmax T (fun x => mean (hid (dm m)) x = 0) V ed hm e ef ev c f
    (centred m) m' ->
  forall tok, (forall t, (t < T)%N -> (tok t < V)%N) ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T m' (fun t => ev (tok t)) t (ev v) = logits softmax T m tok t v.
Proof.
move=> D_gt0 lb nb mP tok tok_lt t v t_lt v_lt.
by rewrite (decoder_logits mP tok_lt t_lt v_lt) centred_logits.
Qed.
