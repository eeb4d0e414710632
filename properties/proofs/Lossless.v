From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Mlp Experts RmsNorm LayerNorm Scale QkNorm Decoder.
From Growproof Require Import Centred Families.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(* What a grower writes of each family, and that the decoder of that has the  *)
(* logits of the old one.                                                     *)
(*                                                                            *)
(*    writes k k' == k' is what a grower writes: each parameter scattered     *)
(*              along its axes, times one scalar. New entries of norms, and   *)
(*              of the head on new lanes and for new tokens, are free.        *)
(*    grow_weights k s == one such k', with s as its layers.                  *)
(*    between, tied == new lanes lie between the old ones; the head is the    *)
(*              embedding.                                                    *)
(******************************************************************************)

Section Lossless.
Variables (R : rcfType) (power : R -> R -> R) (f : family).
Hypothesis powerM : forall x a b, power (power x a) b = power x (a * b).
Let A := ring_arith R.
Let N : Type := (nat -> R) * (nat -> R).
Local Notation config := (config R).
Local Notation kind := (kind R).
Local Notation params := (params R).
Local Notation weights := (weights R).
Local Notation one := (one R f).
Local Notation norm := (norm f).
Local Notation norm_if := (norm_if f).
Local Notation normed_qk := (normed_qk f).
Local Notation turn := (turn power).
Local Notation embed_times := (embed_times f).
Local Notation layer_of := (layer_of power f).
Local Notation model_of := (model_of power f).
Local Notation decoder := (decoder power f).
Local Notation centrable := (centrable f).

Variables (D D' G G' Rp Rp' K K' F F' : nat) (ef : nat -> nat).
Hypotheses (D_gt0 : (0 < D)%N) (K_gt0 : (0 < K)%N).
Hypotheses (G_gt0 : (0 < G)%N) (Rp_gt0 : (0 < Rp)%N).
Hypotheses (D_le : (D <= D')%N) (G_le : (G <= G')%N) (Rp_le : (Rp <= Rp')%N).
Hypotheses (K_le : (K <= K')%N) (efP : emb F F' ef).
Let d := Dims D G Rp K.
Let d' := Dims D' G' Rp' K'.
Let ratio (m n : nat) : R := Num.sqrt (m%:R / n%:R).

(* new lanes between the old ones, or behind each half, or behind all *)
Variables (between tied : bool) (c : config).
Definition place : nat -> nat := if lanes c is Some _ then id
  else if between then muln (K' %/ K) else splitmap K K'.
Definition lanes_fit : bool := match lanes c with
  | Some n => (n <= K)%N
  | None => ~~ odd K && (if between then K %| K' else ~~ odd K')%N
  end.
Definition grow_theta (x : R) : R :=
  if (lanes c == None) && ~~ between then power x (K'%:R / K%:R) else x.
Definition grow_kind (kd : kind) :=
  Kind (omap grow_theta (theta kd)) (cosine kd) (sine kd) (masked kd).
Definition grow_config := Config (eps c * (D%:R / D'%:R)) (score c) (lanes c)
  (ebd_times c) (res_times c) (cap_logits c) (activation c).

(* the scalars: of the scores, of q and k, of their norms, of the embedding *)
Definition of_score : R := if score c is Some _ then 1 else ratio K' K.
Definition of_q : R := match qk f with
  | NoNorm => of_score
  | OfHead => ratio D D' * ratio K' K
  | OfAll => ratio D D' * ratio (G' * Rp' * K') (G * Rp * K)
  end.
Definition of_k : R := match qk f with
  | NoNorm => 1
  | OfHead => ratio D D' * ratio K' K
  | OfAll => ratio D D' * ratio (G' * K') (G * K)
  end.
Definition of_embedding : R := if root_embedding f then ratio D D' else 1.
Definition of_head : R := if tied then of_embedding else 1.

Let qm := qmap Rp K Rp' K' place.
Let kvm := kvmap K K' place.

(* w' is w times a, where w counts from `one` *)
Definition times_at n (e : nat -> nat) (a : R) (w w' : nat -> R) :=
  forall i, (i < n)%N -> one + w' (e i) = (one + w i) * a.
Definition writes_norm (a : R) (w w' : N) :=
  times_at D id a w.1 w'.1 /\ rpadded D D' id w.2 w'.2.
Definition writes_qk n n' e (a : R) (w w' : nat -> R) := match qk f with
  | NoNorm => True
  | OfHead => times_at K place (a * ratio K K') w w'
  | OfAll => times_at n e (a * ratio n n') w w'
  end.
Definition writes_feed (p p' : feed A) := match p, p' with
  | Dense p, Dense p' => mlp_scattered D D' F F' id ef p p'
  | Sparse s, Sparse s' => exists ee, experts_scattered D D' id ee s s'
  | _, _ => False
  end.

Record writes_layer (l l' : params) := WritesLayer {
  kind_at : of_kind l' = grow_kind (of_kind l);
  norm1_at : writes_norm (ratio D D') (norm1 l) (norm1 l');
  norm2_at : writes_norm (ratio D D') (norm2 l) (norm2 l');
  out1_at : writes_norm (ratio D D') (out1 l) (out1 l');
  out2_at : writes_norm (ratio D D') (out2 l) (out2 l');
  q_norm_at : writes_qk (qry d) (qry d') qm of_score (q_norm l) (q_norm l');
  k_norm_at : writes_qk (kv d) (kv d') kvm 1 (k_norm l) (k_norm l');
  attw_at : attn_scattered (A := A) d d' id place ( *%R of_q) ( *%R of_k)
    (attw l) (attw l');
  ffw_at : writes_feed (ffw l) (ffw l') }.

Definition zero_writer (p : mlp_weights A) :=
  (forall i u, (i < D')%N -> wd p i u = 0) /\ (forall i, (i < D')%N -> bd p i = 0).
Definition silent_params (l : params) :=
  [/\ forall i a, (i < D')%N -> wo (attw l) i a = 0,
      forall i, (i < D')%N -> bo (attw l) i = 0
    & match ffw l with
      | Dense p => zero_writer p
      | Sparse s => forall e, (e < many s)%N -> zero_writer (expert s e)
      end].

Record writes V T (k k' : weights) := Writes {
  embedding_at : forall v, (v < V)%N ->
    rpadded D D' id (fun i => embedding k v i * of_embedding) (embedding k' v);
  wpe_at : match wpe k, wpe k' with
    | Some q, Some q' => forall t, (t < T)%N -> rpadded D D' id (q t) (q' t)
    | None, None => True | _, _ => False end;
  blocks_at : deeper writes_layer silent_params (blocks k) (blocks k');
  last_norm_at : writes_norm (ratio D D' / of_head) (last_norm k) (last_norm k');
  head_w_at : forall v i, (v < V)%N -> (i < D)%N ->
    head_w k' v i = head_w k v i * of_head;
  head_b_at : forall v, (v < V)%N -> head_b k' v = head_b k v }.

(* One such k': new entries zero, but for those of norms that count from `one`. *)
Variable more : nat. (* neurons of an expert *)
Definition grow_vec n e (a : R) (w : nat -> R) : nat -> R :=
  @pad A n e (fun i => (one + w i) * a - one).
Definition grow_norm a (w : N) : N := (grow_vec D id a w.1, @pad A D id w.2).
Definition grow_qk n n' e (a : R) (w : nat -> R) := match qk f with
  | NoNorm => w
  | OfHead => grow_vec K place (a * ratio K K') w
  | OfAll => grow_vec n e (a * ratio n n') w
  end.
Definition grow_attn (p : attn A) : attn A := Attn
  (scatter (qry d) D qm id (fun o i => of_q * wq p o i : A))
  (pad (qry d) qm (fun o => of_q * bq p o : A))
  (scatter (kv d) D kvm id (fun o i => of_k * wk p o i : A))
  (pad (kv d) kvm (fun o => of_k * bk p o : A))
  (scatter (kv d) D kvm id (wv p)) (pad (kv d) kvm (bv p))
  (scatter D (qry d) id qm (wo p)) (pad D id (bo p)).
Definition grow_mlp n e (p : mlp_weights A) : mlp_weights A := MlpWeights
  (scatter n D e id (wg p)) (pad n e (bg p)) (scatter n D e id (wu p)) (pad n e (bu p))
  (scatter D n id e (wd p)) (pad D id (bd p)).
Definition grow_feed (p : feed A) : feed A := match p with
  | Dense p => Dense (grow_mlp F ef p)
  | Sparse s => Sparse (Experts (many s) (width s + more) (route s)
      (scatter (many s) D id id (wr s)) (fun e => grow_mlp (width s) id (expert s e)))
  end.
Definition grow_params (l : params) : params := Params (grow_kind (of_kind l))
  (grow_norm (ratio D D') (norm1 l)) (grow_norm (ratio D D') (norm2 l))
  (grow_norm (ratio D D') (out1 l)) (grow_norm (ratio D D') (out2 l))
  (grow_qk (qry d) (qry d') qm of_score (q_norm l))
  (grow_qk (kv d) (kv d') kvm 1 (k_norm l))
  (grow_attn (attw l)) (grow_feed (ffw l)).
Definition grow_weights (k : weights) s : weights := Weights
  (fun v => @pad A D id (fun i => embedding k v i * of_embedding))
  (omap (fun q t => @pad A D id (q t)) (wpe k)) s
  (grow_norm (ratio D D' / of_head) (last_norm k))
  (fun v => @pad A D id (fun i => head_w k v i * of_head)) (head_b k).

Let r : R := D%:R / D'%:R.
Let c' := grow_config.
Let K'_gt0 := leq_trans K_gt0 K_le.
Let D'_gt0 := leq_trans D_gt0 D_le.

Lemma ratio_gt0 m n : (0 < m)%N -> (0 < n)%N -> 0 < ratio m n.
Proof. by move=> m_gt0 n_gt0; rewrite sqrtr_gt0 divr_gt0 ?ltr0n. Qed.

Lemma timesP (a : R) : homothety (A := A) ( *%R a).
Proof. by split=> x y; [apply: mulrDr | apply: mulrA]. Qed.

Hypothesis fits : lanes_fit.

Lemma place_emb : emb K K' place.
Proof.
move: fits; rewrite /lanes_fit /place; case: lanes => [_ _|/andP[K_even]].
  exact: emb_id.
case: between => [/dvdnP[m K'E]|K'_even].
  have m_gt0 : (0 < m)%N by move: K'_gt0; rewrite K'E muln_gt0 => /andP[].
  by rewrite K'E mulnK //; have [] := between_map m_gt0 K_even.
by have [] := rotary_halves_map K_even K'_even K_le.
Qed.

Lemma grow_vec_at n n' e a w : emb n n' e -> times_at n e a w (grow_vec n e a w).
Proof. by move=> eP i i_lt; rewrite /grow_vec (pad_at _ eP) // [LHS]addrC subrK. Qed.

Lemma pad_rpadded n n' e (x : nat -> R) : emb n n' e -> rpadded n n' e x (@pad A n e x).
Proof. by move=> eP; apply/(padE _ _ eP). Qed.

Lemma grow_norm_at a w : writes_norm a w (grow_norm a w).
Proof.
by split; [apply/(grow_vec_at _ _ (emb_id D_le)) | apply/pad_rpadded/emb_id].
Qed.

Lemma grow_mlp_at n n' e p : emb n n' e ->
  mlp_scattered D D' n n' id e p (grow_mlp n e p).
Proof.
move=> eP; have idP := emb_id D_le.
by split; try (by apply: pad_rpadded); apply: scatterP.
Qed.

Lemma grow_params_at l : writes_layer l (grow_params l).
Proof.
have eP := place_emb; have idP := emb_id D_le.
have qmP : emb (qry d) (qry d') qm := prodmap_emb (headmap_emb G_le Rp_le) eP.
have kvmP : emb (kv d) (kv d') kvm := prodmap_emb (emb_id G_le) eP.
split=> //=; try exact: grow_norm_at.
- rewrite /writes_qk /grow_qk; case: qk => //; first exact: grow_vec_at eP.
  exact: grow_vec_at qmP.
- rewrite /writes_qk /grow_qk; case: qk => //; first exact: grow_vec_at eP.
  exact: grow_vec_at kvmP.
- by split; try (by apply: pad_rpadded); apply: scatterP.
case: ffw => [p|s] /=; first exact: grow_mlp_at.
exists id; split=> //=; first exact/emb_id/leq_addr.
  exact: scatterP.
by move=> e _; apply/grow_mlp_at/emb_id/leq_addr.
Qed.

(** MAIN 8 written_by_growing: What the grower writes can be written: every checkpoint
    grown entry by entry, any silent layers added anywhere, is such a one, and its head
    is its embedding where the old one's was. *)
Theorem written_by_growing V T k s :
  deeper (fun l l' => l' = grow_params l) silent_params (blocks k) s ->
  writes V T k (grow_weights k s)
  /\ (tied -> head_w k = embedding k ->
      head_w (grow_weights k s) = embedding (grow_weights k s)).
Proof.
move=> sP; have idP := emb_id D_le; split=> [|tiedE kE]; last first.
  by rewrite /= kE /of_head tiedE.
split=> //=.
- by move=> v _; apply: pad_rpadded.
- by case: (wpe k) => //= q t _; apply: pad_rpadded.
- rewrite -(map_id (blocks k)) -(map_id s).
  apply: (deeper_map (Q := fun=> True)) sP => [l l' _ ->|//|].
    exact: grow_params_at.
  exact/List.Forall_forall.
- exact: grow_norm_at.
by move=> v i _ i_lt; rewrite (pad_at _ idP).
Qed.

Lemma turn_grown kd t : respects (A := A) K K' place (turn c K kd t)
  (turn c' K' (grow_kind kd) t).
Proof.
have idP (e : nat -> nat) : respects (A := A) K K' e id id by split.
rewrite /turn /=; case: theta => [base|] //=; move: fits.
rewrite /lanes_fit /place /grow_theta; case: lanes => [n n_le|/andP[K_even]] /=.
  by apply: partial_rotary_pads => //; apply: oppr0.
have K_neq0 : K%:R != 0 :> R by rewrite pnatr_eq0 -lt0n.
case: between => /= [/dvdnP[m K'E]|K'_even].
  have m_gt0 : (0 < m)%N by move: K'_gt0; rewrite K'E muln_gt0 => /andP[].
  have speed k : - (2 * (m * k))%:R / (m * K)%:R = - (2 * k)%:R / K%:R :> R.
    rewrite mulnCA !natrM !mulNr -mulf_div divff ?mul1r //.
    by rewrite pnatr_eq0 -lt0n.
  rewrite K'E mulnK //.
  by apply: between_rotary_pads => //; [apply: oppr0 | |] => k _; rewrite speed.
have speed k : K'%:R / K%:R * (- (2 * k)%:R / K'%:R) = - (2 * k)%:R / K%:R :> R.
  rewrite mulrC mulrA mulfVK // pnatr_eq0 -lt0n //.
by apply: full_rotary_pads => //; [apply: oppr0 | |] => k _; rewrite powerM speed.
Qed.

Lemma turn_c (a : R) cc n kd t (u : vec A) k :
  turn cc n kd t (fun i => a * u i) k = a * turn cc n kd t u k.
Proof.
rewrite /turn; case: theta => [base|//].
by apply: (rotary_c _ _ _ (timesP a)) => x; apply: mulrN.
Qed.

Lemma scaled_kept s : scaled c' K' (of_score * s) = scaled c K s.
Proof.
rewrite /scaled /of_score /=; case: (score c) => [a|]; first by rewrite mul1r.
exact: (score_scale_field R K_gt0 K'_gt0).2.
Qed.

Lemma qk_grown l l' : writes_layer l l' ->
  attn_grown (A := A) d d' id (headmap Rp Rp') place ( *%R of_score)
    (normed_qk K (qry d) (eps c) (q_norm l))
    (normed_qk K' (qry d') (eps c') (q_norm l'))
    (normed_qk K (kv d) (eps c) (k_norm l)) (normed_qk K' (kv d') (eps c') (k_norm l'))
    (attw l) (attw l').
Proof.
case=> _ _ _ _ _ qP kP + _; move: qP kP; rewrite /writes_qk /normed_qk /of_q /of_k.
have idP : emb D D' id := emb_id D_le; have eP := place_emb.
have rD := ratio_gt0 D_gt0 D'_gt0.
have G'_gt0 := leq_trans G_gt0 G_le; have Rp'_gt0 := leq_trans Rp_gt0 Rp_le.
have q_gt0 : (0 < G * Rp * K)%N by rewrite !muln_gt0 G_gt0 Rp_gt0.
have q'_gt0 : (0 < G' * Rp' * K')%N by rewrite !muln_gt0 G'_gt0 Rp'_gt0.
have k_gt0 : (0 < G * K)%N by rewrite muln_gt0 G_gt0.
have k'_gt0 : (0 < G' * K')%N by rewrite muln_gt0 G'_gt0.
have sq m n : (0 < m)%N -> (0 < n)%N ->
    (ratio D D' * ratio n m) ^+ 2 * (m%:R / n%:R) = r.
  move=> m_gt0 n_gt0; rewrite exprMn !sqr_sqrtr ?divr_ge0 ?ler0n // -mulrA.
  by rewrite mulf_div [(m%:R * _)]mulrC divff ?mulr1 // mulf_neq0 ?pnatr_eq0 -?lt0n.
case: qk => [_ _ aP|qP kP aP|qP kP aP].
- apply: (scattered_grown (d := d) (d' := d')) => //; first exact: timesP.
  case: aP => qA bqA [kA k0] [bkA bk0] vA bvA oA boA; split=> //.
  + by split=> // o i o_lt i_lt; rewrite kA // [LHS]/= mul1r.
  by split=> // o o_lt; rewrite bkA // [LHS]/= mul1r.
- refine (@qk_norm_of_heads R d d' id place _ _ _ _ of_score G_le Rp_le idP eP K_gt0 _
    _ _ aP (fun=> _) (fun=> _) (fun=> _) (fun=> _) _ _ _ _) => //.
  + by rewrite mulr_gt0 ?ratio_gt0.
  + by rewrite sq.
  + by move=> h k _ /qP.
  by move=> g k _ /kP; rewrite mul1r.
refine (@qk_norm_whole R d d' id place _ _ _ _ of_score G_le Rp_le idP eP K_gt0 _ _
  _ _ aP _ _ _ _ _ _ _ qP _) => //.
- by rewrite mulr_gt0 ?ratio_gt0.
- by rewrite mulr_gt0 ?ratio_gt0.
- by rewrite muln_gt0 G_gt0.
- by rewrite sq.
- by rewrite sq.
by move=> i /kP; rewrite mul1r.
Qed.

Variables (softmax : seq A -> seq A) (T V : nat).
(* P: what holds of every stream. *)
Section Streams.
Variable P : vec A -> Prop.
Hypothesis norms_grow : forall w w' x x', writes_norm (ratio D D') w w' -> P x ->
  rpadded D D' id x x' ->
  rpadded D D' id (norm D (eps c) w x) (norm D' (eps c') w' x').
Hypothesis post_free : post f -> ~~ is_layer f /\ forall x, P x.

Lemma norm_if_grown (b : bool) w w' x x' :
  (b -> P x) -> writes_norm (ratio D D') w w' ->
  rpadded D D' id x x' ->
  rpadded D D' id (norm_if b D (eps c) w x) (norm_if b D' (eps c') w' x').
Proof.
by rewrite /norm_if; case: b => // Px wP xP; apply: norms_grow => //; apply: Px.
Qed.

Lemma out_grown w w' x x' : writes_norm (ratio D D') w w' -> rpadded D D' id x x' ->
  rpadded D D' id (fun i => norm_if (post f) D (eps c) w x i * res_times c)
    (fun i => norm_if (post f) D' (eps c') w' x' i * res_times c').
Proof.
move=> wP xP; have [|y y0] := @norm_if_grown (post f) _ _ _ _ _ wP xP.
  by move=> /post_free[].
split=> [i i_lt|i i_lt i_off]; first by rewrite -(y i).
by rewrite y0 //; apply: mul0r.
Qed.

Section Models.
Variables (times times' : A -> A) (tb tb' : mat A) (ps ps' : option (mat A)).
Variables (ls ls' : seq params) (w w' : N) (hw hw' : mat A) (hb hb' : vec A).
Let m := model_of c d F times tb ps ls w hw hb.
Let m' := model_of c' d' F' times' tb' ps' ls' w' hw' hb'.

Lemma silent_grown l : silent_params l -> silent_layer softmax T m' (layer_of c' d' l).
Proof.
move=> [wo0 bo0 ff0]; apply: silent_writers => //= y y0.
suff out0 v i : (i < D')%N -> norm_if (post f) D' (eps c') v y i * res_times c = 0.
  by move=> i i_lt; split; apply: out0.
move=> i_lt; rewrite /norm_if; case: ifP => [/post_free[/negPf rmsE _]|_].
  by rewrite /norm rmsE /rms y0 // mul0r mulr0 mul0r.
by rewrite y0 // mul0r.
Qed.

Lemma growth :
  (forall v, (v < V)%N ->
    rpadded D D' id (fun i => times (tb v i)) (fun i => times' (tb' v i))) ->
  match ps, ps' with
  | Some q, Some q' => forall t, (t < T)%N -> rpadded D D' id (q t) (q' t)
  | None, None => True | _, _ => False end ->
  deeper writes_layer silent_params ls ls' ->
  norm_grown (A := A) P id m m' (fun x i => of_head^-1 * norm D (eps c) w x i)
    (norm D' (eps c') w') ->
  of_head != 0 ->
  (forall v i, (v < V)%N -> (i < D)%N -> hw' v i = hw v i * of_head) ->
  (forall v, (v < V)%N -> hb' v = hb v) ->
  (forall t v, (v < V)%N -> P (embedded m t v)) ->
  List.Forall (fun l0 => let l := layer_of c d l0 in
    (forall x t, P (p1 l (att_out softmax T m l x t)))
    /\ forall x, P (p2 l (ff_out m l x))) ls ->
  (forall x y, P x -> P y -> P (fun i => x i + y i)) ->
  model_grown softmax T P V id (headmap Rp Rp') place ef id ( *%R of_score)
    ( *%R of_head^-1) m m'.
Proof.
move=> tbP psP lsP nfP h_neq0 hwP hbP P0 Pls Padd; split=> //.
- exact: emb_id.
- exact: headmap_emb.
- exact: place_emb.
- exact: timesP.
- by move=> s; apply: scaled_kept.
- apply: deeper_map Pls lsP => [l l' [Pa Pf] lP|l /silent_grown//].
  have [kdP n1P n2P o1P o2P _ _ _ fP] := lP; split=> //=.
  + by move=> x x' Px; apply: norm_if_grown.
  + by move=> x x' Px; apply: norm_if_grown => //; case: ifP.
  + by move=> x x'; apply: out_grown.
  + by move=> x x'; apply: out_grown.
  + by move=> t; rewrite kdP; apply: turn_grown.
  + by move=> t u k; apply: turn_c.
  + by rewrite kdP.
  + exact: qk_grown.
  move: fP; rewrite /writes_feed; case: (ffw l) (ffw l') => [p|s] [p'|s'] //.
    exact: mlp_scattered_free.
  by case=> ee /experts_scattered_free sP; exists ee.
by move=> v i y v_lt i_lt; rewrite [LHS]/= hwP // -mulrA mulVKf.
Qed.

End Models.
End Streams.

Lemma head_neq0 : of_head != 0.
Proof.
rewrite /of_head /of_embedding; case: tied; case: root_embedding; rewrite ?oner_eq0 //.
by rewrite gt_eqF // ratio_gt0.
Qed.

Lemma embed_times_grown x : embed_times c' D' (x * of_embedding) = embed_times c D x.
Proof.
rewrite /embed_times /of_embedding /=; case: root_embedding; last by rewrite mulr1.
rewrite -!mulrA; congr (_ * _); rewrite mulrA -sqrtrM ?divr_ge0 ?ler0n // mulfVK //.
by rewrite pnatr_eq0 -lt0n.
Qed.

Variable tok : nat -> nat.
Hypothesis tok_lt : forall t, (t < T)%N -> (tok t < V)%N.
Variables k k' : weights.

Lemma plain_growth :
  (forall w w' x x', writes_norm (ratio D D') w w' -> rpadded D D' id x x' ->
    rpadded D D' id (norm D (eps c) w x) (norm D' (eps c') w' x')) ->
  (forall x x', rpadded D D' id x x' ->
    rpadded D D' id (fun i => of_head^-1 * norm D (eps c) (last_norm k) x i)
      (norm D' (eps c') (last_norm k') x')) ->
  (post f -> ~~ is_layer f) -> writes V T k k' ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' k') tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> normP lastP postP [eP pP bP nP hP hbP] t v t_lt v_lt.
suff mP : model_grown softmax T (fun=> True) V id (headmap Rp Rp') place ef id
    ( *%R of_score) ( *%R of_head^-1) (decoder c d F k) (decoder c' d' F' k').
  exact: (decoder_logits (ev := id) mP tok_lt t_lt v_lt).
apply: growth => //.
- by move=> w w' x x' wP _; apply: normP.
- by move=> /postP.
- move=> w w_lt; have [e0 e1] := eP w w_lt; split=> [i i_lt|i i_lt i_off] /=.
    by rewrite e0 // embed_times_grown.
  by rewrite e1 // /embed_times; apply: mul0r.
- by move=> x x' _; apply: lastP.
- exact: head_neq0.
exact/List.Forall_forall.
Qed.

(** MAIN 8 rms_lossless: For every decoder with RMSNorms (before a block, behind it or
    both, of q and k or not, any rotary, mask and cap, one MLP or experts, any
    multipliers), every size that does not shrink, every weight and every token, the
    decoder of what the grower writes has the logits of the old one. *)
Theorem rms_lossless : ~~ is_layer f -> writes V T k k' ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' k') tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> /negPf rmsE kP.
have normP w w' x x' : writes_norm (ratio D D') w w' -> rpadded D D' id x x' ->
    rpadded D D' id (norm D (eps c) w x) (norm D' (eps c') w' x').
  by rewrite /norm rmsE => -[wP _]; apply: rmsnorm_scaled => //; apply: emb_id.
apply: plain_growth => // [x x' xP|]; last by rewrite rmsE.
have oneK z : one + (z - one) = z by rewrite addrC subrK.
have [lP bP] := last_norm_at kP.
pose w := (fun i => (one + (last_norm k).1 i) / of_head - one, (last_norm k).2) : N.
have wP : writes_norm (ratio D D') w (last_norm k').
  by split=> // i i_lt; rewrite lP //= oneK mulrA mulrAC.
have [y y0] := normP _ _ _ _ wP xP; split=> // i i_lt; rewrite [LHS]y //.
by rewrite /norm rmsE /rms /= oneK mulrAC [RHS]mulrC.
Qed.

(** MAIN 8 same_width_lossless: For every decoder with LayerNorms before its blocks, tied
    or not, whose hidden_size stays while all else grows, the decoder of what the grower
    writes, with nothing centred, has the logits of the old one. *)
Theorem same_width_lossless : D' = D -> is_layer f -> ~~ post f -> writes V T k k' ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' k') tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> DE layerE /negPf postE kP.
have rE : ratio D D' = 1 by rewrite /ratio DE divff ?sqrtr1 // pnatr_eq0 -lt0n.
have hE : of_head = 1 by rewrite /of_head /of_embedding rE !if_same.
have normP w w' x x' : writes_norm (ratio D D') w w' -> rpadded D D' id x x' ->
    rpadded D D' id (norm D (eps c) w x) (norm D' (eps c') w' x').
  rewrite rE /= DE divff ?mulr1 ?pnatr_eq0 -?lt0n //.
  rewrite /norm layerE => -[wP [bP _]] [xP _].
  split=> [i i_lt|i i_lt]; last by rewrite img_id i_lt.
  rewrite -(eq_ln (eps c) w.1 w.2 (x := x')) => [|j /xP//|//].
  by have := wP i i_lt; rewrite mulr1 /ln /rms => /addrI->; rewrite [w'.2 _]bP.
apply: plain_growth => // [x x' xP|]; last by rewrite postE.
have := last_norm_at kP; rewrite hE invr1 mulr1 => lP.
have [y y0] := normP _ _ _ _ lP xP; split=> // i i_lt; rewrite [LHS]y //.
by rewrite mul1r.
Qed.

Lemma lanes_fit_in : lanes_in c K /\ lanes_in c' K'.
Proof.
move: fits; rewrite /lanes_fit /lanes_in /=; case: lanes => [n n_le|_] //=.
by rewrite n_le (leq_trans n_le K_le).
Qed.

Lemma layer_grown_mean0 : centrable -> forall w w' x x',
  writes_norm (ratio D D') w w' -> mean D x = 0 -> rpadded D D' id x x' ->
  rpadded D D' id (norm D (eps c) w x) (norm D' (eps c') w' x').
Proof.
move=> /and5P[layerE _ _ /negPf oneE _] w w' x x' [wP bP] x0; rewrite /norm layerE.
apply: layernorm_zero_mean => //; first exact: emb_id.
by move=> i i_lt; have := wP i i_lt; rewrite /one oneE !add0r.
Qed.

Lemma centrable_scalars : centrable ->
  [/\ of_head = 1, of_embedding = 1
    & forall n e (x : R), embed_times e n x = x * (1 * ebd_times e)].
Proof.
move=> /and5P[_ _ _ _ /andP[/negPf rootE _]].
have eE : of_embedding = 1 by rewrite /of_embedding rootE.
by split=> // [|n e x]; rewrite ?/of_head ?eE ?if_same // /embed_times rootE.
Qed.

Lemma centred_growth times' tb' ps' ls' w' hw' hb' : centrable ->
  (forall v, (v < V)%N ->
    rpadded D D' id (centred_times f c d k v) (fun i => times' (tb' v i))) ->
  match omap (fun q t => centre D (q t)) (wpe k), ps' with
  | Some q, Some q' => forall t, (t < T)%N -> rpadded D D' id (q t) (q' t)
  | None, None => True | _, _ => False end ->
  deeper writes_layer silent_params (map (centre_params D) (blocks k)) ls' ->
  writes_norm (ratio D D' / of_head) (last_norm k) w' ->
  (forall v i, (v < V)%N -> (i < D)%N -> hw' v i = head_w k v i * of_head) ->
  (forall v, (v < V)%N -> hb' v = head_b k v) ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (model_of c' d' F' times' tb' ps' ls' w' hw' hb') tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> fam tP pP bP nP hP hbP t v t_lt v_lt; have [inK _] := lanes_fit_in.
have [headE _ _] := centrable_scalars fam; move: nP; rewrite headE divr1 => nP.
rewrite -(@centred_kept R power f c d F softmax T D_gt0 fam inK k) //.
have [P0 Pls Padd] := @centred_mean0 R power f c d F softmax T D_gt0 fam k.
suff mP : model_grown softmax T (fun x => mean D x = 0) V id (headmap Rp Rp') place ef id
    ( *%R of_score) ( *%R of_head^-1) (centred (decoder c d F k))
    (model_of c' d' F' times' tb' ps' ls' w' hw' hb').
  exact: (decoder_logits (ev := id) mP tok_lt t_lt v_lt).
rewrite centredE; rewrite centredE in P0 Pls.
apply: growth => //; first exact: layer_grown_mean0.
- by have := fam; rewrite /centrable => /and5P[_ _ /negPf->].
- move=> x x' x0 xP; have [y y0] := layer_grown_mean0 fam nP x0 xP.
  by split=> // i i_lt; rewrite headE invr1 mul1r; apply: y.
exact: head_neq0.
Qed.

(** MAIN 8 layernorm_lossless: For every decoder with LayerNorms before its blocks
    (sequential, or parallel with one norm or two, gated or plain, learned positions or
    any rotary), and a head of its own, the decoder of what the grower writes (writers
    centred, then everything scattered and scaled) has the logits of the old one. *)
Theorem layernorm_lossless : centrable -> writes V T (centre_weights D k) k' ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' k') tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> fam [eP pP bP nP hP hbP]; have [_ eE tE] := centrable_scalars fam.
apply: centred_growth => // v v_lt; have [e0 e1] := eP v v_lt.
split=> [i i_lt|i i_lt i_off]; rewrite tE.
  by rewrite [embedding k' v i]e0 // eE mulr1 -(centre_times (fun j _ => tE D c _)).
by rewrite [embedding k' v i]e1 //; apply: mul0r.
Qed.

Lemma centred_twice k1 : centrable ->
  writes V T (centre_weights D k) (centre_weights D' k1) ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' k1) tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> fam [eP pP bP nP hP hbP] t v t_lt v_lt; have [_ inK'] := lanes_fit_in.
have [_ eE tE] := centrable_scalars fam.
rewrite -(@centred_kept R power f c' d' F' softmax T D'_gt0 fam inK' k1) // centredE.
apply: centred_growth => // u u_lt; have [e0 e1] := eP u u_lt.
split=> [i i_lt|i i_lt i_off]; rewrite [LHS](centre_times (fun j _ => tE D' c' _))
    ?(leq_trans i_lt D_le) //.
  by rewrite [centre D' _ _]e0 // eE mulr1 -(centre_times (fun j _ => tE D c _)).
by rewrite [centre D' _ _]e1 //; apply: mul0r.
Qed.

(* Centring takes the mean out of the old lanes and of those that hold it. *)
Lemma centre_average (x x' : nat -> R) : rpadded D D' id x x' ->
  rpadded D D' id (centre D x) (centre D' (average D x')).
Proof.
move=> [xE _]; have mE : mean D x' = mean D x.
  by rewrite /mean (eq_rsum (y := x)) // => i /xE.
pose y i := average D x' i - mean D x.
have yP : rpadded D D' id (centre D x) y.
  split=> [i i_lt|i _]; rewrite /y /average; first by rewrite i_lt [x' i]xE.
  by rewrite img_id => /negPf->; rewrite mE subrr.
suff cE i : centre D' (average D x') i = y i.
  by split=> [i i_lt|i i_lt i_off]; rewrite cE; [apply: yP.1 | apply: yP.2].
rewrite /y /centre; congr (_ - _); rewrite -[RHS]add0r.
have -> : 0 = mean D' y :> R.
  by rewrite (mean_padded D_gt0 (emb_id D_le) yP) mean_centre // mulr0.
rewrite /y meanD /mean rsum_const mulfK ?subrK // pnatr_eq0 -lt0n //.
Qed.

Lemma centre_average0 (x' : nat -> R) : (forall i, (i < D')%N -> x' i = 0) ->
  forall i, (i < D')%N -> centre D' (average D x') i = 0.
Proof.
move=> x'0 i i_lt; have xP : rpadded D D' id (fun=> 0) x'.
  by split=> j j_lt; [apply/x'0/(leq_trans j_lt) | move=> _; apply: x'0].
have [old new] := centre_average xP.
case: (ltnP i D) => [/old->|i_ge]; last by rewrite new // img_id -leqNgt.
by rewrite /centre /mean rsum_const !mul0r subr0.
Qed.

Lemma average_columns n n' e W W' : emb n n' e ->
  scattered (A := A) D D' n n' id e W W' ->
  scattered (A := A) D D' n n' id e (centred_columns D W)
    (centred_columns D' (fun i a => average D (W' ^~ a) i)).
Proof.
move=> [e_lt _] [WE W0]; have col a : (a < n)%N ->
    rpadded D D' id (centre D (W ^~ a)) (centre D' (average D (W' ^~ (e a)))).
  move=> a_lt; apply: centre_average; split=> [i i_lt|i i_lt i_off]; first exact: WE.
  by apply: W0; rewrite ?i_off ?e_lt.
split=> [i a i_lt a_lt|i a i_lt a_lt]; first exact: (col a a_lt).1.
case: (boolP (img n e a)) => [/imgP[a0 a0_lt <-]|a_off _]; last first.
  by apply: centre_average0 => // j j_lt; apply: W0; rewrite ?a_off ?orbT.
by rewrite orbF; apply: (col a0 a0_lt).2.
Qed.

Lemma average_mlp_at n n' e (p p' : mlp_weights A) : emb n n' e ->
  mlp_scattered D D' n n' id e p p' ->
  mlp_scattered (A := A) D D' n n' id e (@centred_mlp R D p)
    (@centred_mlp R D' (average_mlp D p')).
Proof.
move=> eP [gS gb uS ub dS db]; split=> //=; first exact: average_columns.
exact: centre_average.
Qed.

Lemma average_params_at l l' : writes_layer l l' ->
  writes_layer (centre_params D l) (centre_params D' (average_params D l')).
Proof.
have qmP : emb (qry d) (qry d') qm := prodmap_emb (headmap_emb G_le Rp_le) place_emb.
case=> kdP n1P n2P o1P o2P qP kP [qS bqS kS bkS vS bvS oS boS] fP; split=> //=.
  split=> //=; first exact: average_columns.
  exact: centre_average.
move: fP; rewrite /writes_feed; case: (ffw l) (ffw l') => [p|s] [p'|s'] //=.
  exact: average_mlp_at.
move=> [ee [cE rE wP rS eS]]; exists ee; split=> //= e e_lt.
by apply: average_mlp_at => //; apply: eS.
Qed.

Lemma average_silent l : silent_params l ->
  silent_params (centre_params D' (average_params D l)).
Proof.
have mlp0 (p : mlp_weights A) : zero_writer p ->
    zero_writer (@centred_mlp R D' (average_mlp D p)).
  move=> [wd0 bd0]; split=> [i u i_lt|i i_lt]; last exact: centre_average0.
  by apply: centre_average0 => // j /wd0.
move=> [wo0 bo0 ff0]; split=> /= [i a i_lt|i i_lt|].
- by apply: centre_average0 => // j /wo0.
- exact: centre_average0.
by move: ff0; case: ffw => [p|s] /= => [|s0 e /s0]; apply: mlp0.
Qed.

(** MAIN 8 averaged_lossless: For every decoder with LayerNorms before its blocks, tied or
    not, the decoder of what the grower writes, where each writer of the residual, and a
    head that is tied, holds in its new lanes the mean of its old ones, has the logits of
    the old one. *)
Theorem averaged_lossless k1 : centrable -> writes V T k k1 ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' (average_weights tied D k1)) tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> fam [eP pP bP nP hP hbP]; have [_ eE _] := centrable_scalars fam.
apply: centred_twice => //; split=> //=.
- move=> v v_lt; have [old new] := centre_average (eP v v_lt); split=> // i i_lt.
  by rewrite [LHS]old // (centre_times (fun j _ => erefl)).
- move: pP; case: (wpe k) (wpe k1) => [q|] [q'|] //= qP t t_lt.
  exact: centre_average (qP t t_lt).
- rewrite -map_comp; apply: deeper_map bP => [l l' _|l|].
  + exact: average_params_at.
  + exact: average_silent.
  exact/List.Forall_forall.
move=> v i v_lt i_lt; rewrite -hP //; case: tied => //.
by rewrite /average i_lt.
Qed.

(* What a grower writes, by the norms of the family. *)
Definition written : Prop := if is_layer f then
    [\/ D' = D /\ writes V T k k', writes V T (centre_weights D k) k'
      | exists2 k1, writes V T k k1 & k' = average_weights tied D k1]
  else writes V T k k'.

(** MAIN 8 families_lossless: For every family in the table of growproof, every config of
    it (a StableLm has no norms of q and k), all sizes that do not shrink, the query heads
    of a key/value head among them, every weight and every token, the decoder of what the
    grower writes has the logits of the old one. *)
Theorem families_lossless n together : f = family_of n together -> written ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' k') tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> fE; have [fam postP] : (is_layer f -> centrable) /\ (is_layer f -> ~~ post f).
  by rewrite fE; case: n {fE}.
rewrite /written; case: ifP => [layerE|/negbT rmsE].
  case=> [[DE kP]|kP|[k1 kP ->]].
    by apply: same_width_lossless => //; apply: postP.
    by apply: layernorm_lossless => //; apply: fam.
  by apply: averaged_lossless => //; apply: fam.
exact: rms_lossless.
Qed.

End Lossless.
