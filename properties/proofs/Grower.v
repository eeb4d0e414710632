From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Mlp Experts RmsNorm LayerNorm Scale Decoder Freedom Centred.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.

(******************************************************************************)
(* What a grower writes, as a function, and that it is a growth.              *)
(*                                                                            *)
(*    checkpoint A N == the weights of a decoder whose norms have parameters  *)
(*                   of type N.                                               *)
(*    grow_attn c p, grow_mlp p == the weights scattered along their axes, q  *)
(*                   times c, the rest zero.                                  *)
(*    grow k s == the checkpoint k grown: embedding and head scattered, the   *)
(*                   last norm grown, and s as its layers.                    *)
(*    grown_layers s s' == s' is s with each layer grown, and any number of   *)
(*                   new layers anywhere, whose writers are zero and whose    *)
(*                   other weights are free.                                  *)
(*    llama, stablelm == the decoder of a checkpoint, as transformers runs it,*)
(*                   from sizes, eps, theta (and rotary lanes) of the config. *)
(******************************************************************************)

Record weights (A : arith) (N : Type) := Weights {
  norm1 : N; norm2 : N; attw : attn A; mlpw : mlp_weights A }.
Record checkpoint (A : arith) (N : Type) := Checkpoint {
  embedding : mat A; blocks : seq (weights A N); last_norm : N; head_w : mat A }.

Lemma Forall_map (S Z : Type) (f : Z -> S) (Q : S -> Prop) s :
  (forall z, Q (f z)) -> List.Forall Q (map f s).
Proof. by move=> Qf; elim: s => //= z s IHs; constructor. Qed.

Lemma pad_padded (A : arith) n n' e (x : vec A) : emb n n' e -> padded n n' e x (pad n e x).
Proof. by move=> eP; apply/(padE _ _ eP). Qed.

Section Model.
Variables (A : arith) (N : Type) (norm : N -> vec A -> vec A) (d : dims) (F : nat).
Variables (rot : nat -> vec A -> vec A) (mask : nat -> nat -> A -> A).
Variables (scale act : A -> A) (parallel : bool).

Definition layer_of (l : weights A N) : layer A :=
  Layer (norm (norm1 l)) id (norm (if parallel then norm1 l else norm2 l)) id id id
    rot mask (attw l) (Dense (mlpw l)).
Definition decoder_of (k : checkpoint A N) : model A :=
  Model d F scale act true parallel id (embedding k) None
    (map layer_of (blocks k)) (norm (last_norm k)) (head_w k) (fun=> zero) id.

End Model.

Section Grow.
Variables (A : arith) (d d' : dims) (F F' : nat) (e : nat -> nat) (c : A -> A).
Hypotheses (hid_le : hid d <= hid d') (grp_le : grp d <= grp d').
Hypotheses (rep_le : rep d <= rep d') (mlp_le : F <= F').
Hypothesis eP : emb (lane d) (lane d') e.

Let D := hid d. Let D' := hid d'.
Let qm := qmap (rep d) (lane d) (rep d') (lane d') e.
Let kvm := kvmap (lane d) (lane d') e.
Let qmP : emb (qry d) (qry d') qm := prodmap_emb (headmap_emb grp_le rep_le) eP.
Let kvmP : emb (kv d) (kv d') kvm := prodmap_emb (emb_id grp_le) eP.
Let hidP : emb D D' id := emb_id hid_le.
Let mlpP : emb F F' id := emb_id mlp_le.

Definition grow_attn (p : attn A) : attn A := Attn
  (scatter (qry d) D qm id (fun o i => c (wq p o i))) (pad (qry d) qm (fun o => c (bq p o)))
  (scatter (kv d) D kvm id (wk p)) (pad (kv d) kvm (bk p))
  (scatter (kv d) D kvm id (wv p)) (pad (kv d) kvm (bv p))
  (scatter D (qry d) id qm (wo p)) (pad D id (bo p)).

Definition grow_mlp (p : mlp_weights A) : mlp_weights A := MlpWeights
  (scatter F D id id (wg p)) (pad F id (bg p)) (scatter F D id id (wu p)) (pad F id (bu p))
  (scatter D F id id (wd p)) (pad D id (bd p)).

Lemma grow_attn_scattered p : attn_scattered d d' id e c p (grow_attn p).
Proof. by split; try exact: pad_padded; apply: scatterP. Qed.

Lemma grow_mlp_scattered p : mlp_scattered D D' F F' id id p (grow_mlp p).
Proof. by split; try exact: pad_padded; apply: scatterP. Qed.

Variables (N : Type) (gn : N -> N).
Implicit Types (k : checkpoint A N) (s : seq (weights A N)).

Definition grow_layer (l : weights A N) :=
  Weights (gn (norm1 l)) (gn (norm2 l)) (grow_attn (attw l)) (grow_mlp (mlpw l)).
Definition silent_weights (l : weights A N) :=
  [/\ forall i a, i < D' -> wo (attw l) i a = zero,
      forall i, i < D' -> bo (attw l) i = zero,
      forall i u, i < D' -> wd (mlpw l) i u = zero
    & forall i, i < D' -> bd (mlpw l) i = zero].
Definition grown_layers := deeper (fun l l' => l' = grow_layer l) silent_weights.
Definition grow k s : checkpoint A N := Checkpoint (fun v => pad D id (embedding k v)) s
  (gn (last_norm k)) (fun v => pad D id (head_w k v)).

Variables (softmax : seq A -> seq A) (T V : nat).
Variables (P : vec A -> Prop) (norm norm' : N -> vec A -> vec A).
Variables (rot rot' : nat -> vec A -> vec A) (mask : nat -> nat -> A -> A).
Variables (scale scale' act : A -> A) (par : bool).
Hypotheses (cP : homothety c) (scaleP : forall z, scale' (c z) = scale z).
Hypothesis rot_c : forall t u i, rot t (fun i => c (u i)) i = c (rot t u i).
Hypothesis rotP : forall t, respects (lane d) (lane d') e (rot t) (rot' t).
Variables (k k' : checkpoint A N).
Let m := decoder_of norm d F rot mask scale act par k.
Let m' := decoder_of norm' d' F' rot' mask scale' act par k'.
Let build := layer_of norm rot mask par.
Hypothesis P_embedding : forall v, P (embedding k v).
Hypothesis P_writes : List.Forall (fun l =>
  (forall x t, P (att_out softmax T m (build l) x t))
  /\ forall x, P (ff_out m (build l) x)) (blocks k).
Hypothesis P_sum : forall x y, P x -> P y -> P (fun i => x i +. y i).

Definition norm_written (w w' : N) := norm_grown P id m m' (norm w) (norm' w').
Definition written (l l' : weights A N) :=
  [/\ norm_written (norm1 l) (norm1 l'), norm_written (norm2 l) (norm2 l'),
      attn_scattered d d' id e c (attw l) (attw l')
    & mlp_scattered D D' F F' id id (mlpw l) (mlpw l')].

Lemma written_is_growth :
  (forall v, v < V -> padded D D' id (embedding k v) (embedding k' v)) ->
  deeper written silent_weights (blocks k) (blocks k') ->
  norm_written (last_norm k) (last_norm k') ->
  agree2 V D id id (head_w k) (head_w k') ->
  model_grown softmax T P V id (headmap (rep d) (rep d')) e id id c id m m'.
Proof.
move=> embP lsP nP headP; split=> //=; try exact: emb_id.
- exact: headmap_emb.
- apply: deeper_map P_writes lsP => [l l' [Pa Pf] [n1P n2P aP mlpP']|l l_silent]; last first.
    apply: (@silent_writers A softmax T m') => [y y0 i /y0 //|].
    by case: l_silent => wo0 bo0 wd0 bd0; split.
  split=> //=.
  + by case: par.
  + exact: scattered_grown aP.
  exact: mlp_scattered_free mlpP'.
- by move=> v i y v_lt i_lt /=; rewrite headP.
by move=> t v _; apply: P_embedding.
Qed.

Lemma grow_is_growth : (forall w, norm_written w (gn w)) ->
  k' = grow k (blocks k') -> grown_layers (blocks k) (blocks k') ->
  model_grown softmax T P V id (headmap (rep d) (rep d')) e id id c id m m'.
Proof.
move=> normP k'E sP; apply: written_is_growth.
- by move=> v _; rewrite k'E; apply: pad_padded.
- rewrite -(map_id (blocks k)) -(map_id (blocks k')).
  apply: (deeper_map (Q := fun=> True)) sP => [l _ _ ->|//|]; last exact/List.Forall_forall.
  split=> //=; [exact: grow_attn_scattered | exact: grow_mlp_scattered].
- by rewrite k'E; apply: normP.
by move=> v i _ i_lt; rewrite k'E /= (pad_at _ hidP).
Qed.

End Grow.

Local Open Scope ring_scope.

Section Families.
Variables (R : rcfType).
Let A := ring_arith R.
Variables (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A) (T V : nat).
(* power x a is x^a; cosine, sine and the activation may be any functions *)
Variables (power : R -> R -> R) (cosine sine act : R -> R).
Hypothesis powerM : forall x a b, power (power x a) b = power x (a * b).
Implicit Types (w : nat -> R) (d : dims) (F n : nat) (eps theta : R).

Definition angle theta n t k : R := t%:R * power theta (- (2 * k)%:R / n%:R).
Definition rope theta n t : vec A -> vec A := rotary (A := A) (@GRing.opp R) n
  (fun k => cosine (angle theta n t k)) (fun k => sine (angle theta n t k)).
Definition over_root n (s : R) : R := s / Num.sqrt n%:R.
Definition layernorm D eps (w : (nat -> R) * (nat -> R)) := ln D eps w.1 w.2.

Definition llama d F eps theta := @decoder_of A _ (rms (hid d) eps) d F
  (rope theta (lane d)) mask (over_root (lane d)) act false.
Definition stablelm d F eps theta n parallel := @decoder_of A _ (layernorm (hid d) eps)
  d F (rope theta n) mask (over_root (lane d)) act parallel.

Definition centre_layer D (l : weights A ((nat -> R) * (nat -> R))) : weights A _ :=
  Weights (norm1 l) (norm2 l) (centred_attn D (attw l)) (centred_mlp D (mlpw l)).
Definition centre_all D (k : checkpoint A ((nat -> R) * (nat -> R))) : checkpoint A _ :=
  Checkpoint (fun v => centre D (embedding k v)) (map (centre_layer D) (blocks k))
    (last_norm k) (head_w k).

Variables (D D' G G' Rp Rp' K K' F F' : nat).
Hypotheses (D_gt0 : (0 < D)%N) (K_gt0 : (0 < K)%N).
Hypotheses (D_le : (D <= D')%N) (G_le : (G <= G')%N) (Rp_le : (Rp <= Rp')%N).
Hypotheses (K_le : (K <= K')%N) (F_le : (F <= F')%N).
Let d := Dims D G Rp K.
Let d' := Dims D' G' Rp' K'.
Let r : R := D%:R / D'%:R.
Let c : A -> A := *%R (Num.sqrt (K'%:R / K%:R)).
Let K'_gt0 := leq_trans K_gt0 K_le.
Let cP := (@score_scale_field R K K' K_gt0 K'_gt0).1.
Let cS := (@score_scale_field R K K' K_gt0 K'_gt0).2.

Definition grow_weight w : nat -> R := @pad A D id (fun i => w i * Num.sqrt r).
Definition grow_layernorm (w : (nat -> R) * (nat -> R)) :=
  (grow_weight w.1, @pad A D id w.2 : nat -> R).
Definition llama_layers := @grown_layers A d d' F (splitmap K K') c _ grow_weight.
Definition grow_llama := @grow A d _ grow_weight.
Definition stablelm_layers := @grown_layers A d d' F id c _ grow_layernorm.
Definition grow_stablelm := @grow A d _ grow_layernorm.

Lemma grow_weightE w i : (i < D)%N -> grow_weight w i = w i * Num.sqrt r.
Proof. by move=> i_lt; rewrite /grow_weight (pad_at _ (emb_id D_le)). Qed.

Lemma rope_c theta n t (u : vec A) i :
  rope theta n t (fun k => c (u k)) i = c (rope theta n t u i).
Proof. by apply: (rotary_c _ _ _ cP) => x; apply: mulrN. Qed.

Variables (eps theta : R) (tok : nat -> nat).
Hypothesis tok_lt : forall t, (t < T)%N -> (tok t < V)%N.

Lemma frequency_kept t k : angle (power theta (K'%:R / K%:R)) K' t k = angle theta K t k.
Proof.
rewrite /angle powerM; congr (_ * power _ _).
by rewrite mulrC mulrA mulfVK // pnatr_eq0 -lt0n.
Qed.

(** MAIN 8 llama_lossless: For every Llama, every size that does not shrink,
    every weight and every token, the decoder of what the grower writes
    (scattered weights, q times sqrt(K'/K), norm weights times sqrt(D/D'), eps
    times D/D', theta to the power K'/K, and added layers with zero writers
    anywhere) has the logits of the old one. *)
Theorem llama_lossless (k : checkpoint A (nat -> R)) s : ~~ odd K -> ~~ odd K' ->
  llama_layers (blocks k) s -> forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T
    (llama d' F' (eps * r) (power theta (K'%:R / K%:R)) (grow_llama k s)) tok t v
  = logits softmax T (llama d F eps theta k) tok t v.
Proof.
move=> K_even K'_even sP t v t_lt v_lt.
have [eP _ _] := rotary_halves_map K_even K'_even K_le.
apply: (@decoder_logits A softmax T (fun=> True) V id _ _ id id c id) => //.
apply: (grow_is_growth (e := splitmap K K') (c := c)) => //
  [u z i|u||w].
- exact: rope_c.
- by apply: full_rotary_pads; rewrite ?oppr0 // => i _; rewrite frequency_kept.
- by apply/List.Forall_forall.
by apply: rmsnorm_grows => //; [apply: emb_id | apply: grow_weightE].
Qed.

(** MAIN 8 llama_twin: Whatever scalars are in the weights, and whatever eps and theta a
    grower of Llamas writes: scattered weights compute what they compute in the old
    decoder with the norm weights times sqrt(D'/D), eps times D'/D, scores over sqrt(K')
    and the angles of the new theta on K' lanes. *)
Theorem llama_twin (eps' theta' : R) (k : checkpoint A (nat -> R)) s
    (rope' := fun t => rotary (A := A) (@GRing.opp R) K
      (fun i => cosine (angle theta' K' t i)) (fun i => sine (angle theta' K' t i))) :
  ~~ odd K -> ~~ odd K' ->
  @grown_layers A d d' F (splitmap K K') id _ (@pad A D id) (blocks k) s ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (llama d' F' eps' theta' (@grow A d _ (@pad A D id) k s)) tok t v
  = logits softmax T (@decoder_of A _
      (fun w => rms D (eps' / r) (fun i => w i / Num.sqrt r)) d F rope' mask
      (over_root K') act false k) tok t v.
Proof.
move=> K_even K'_even sP t v t_lt v_lt; have D'_gt0 := leq_trans D_gt0 D_le.
have r_gt0 : 0 < r by rewrite divr_gt0 ?ltr0n.
have r_neq0 : r != 0 by rewrite gt_eqF.
have q_neq0 : Num.sqrt r != 0 by rewrite gt_eqF ?sqrtr_gt0.
have [eP _ _] := rotary_halves_map K_even K'_even K_le.
apply: (@decoder_logits A softmax T (fun=> True) V id _ _ id id id id) => //.
apply: (grow_is_growth (e := splitmap K K') (c := id)) => // [u||w].
- by apply: full_rotary_pads; rewrite ?oppr0.
- exact/List.Forall_forall.
move=> x x' _; have := @rmsnorm_scaled R D D' id D_gt0 (emb_id D_le) (eps' / r)
  (fun i => w i / Num.sqrt r) (@pad A D id w) x x'.
rewrite -/r mulfVK //; apply=> i i_lt.
by rewrite (pad_at _ (emb_id D_le)) // mulfVK.
Qed.

(* Each weight that is multiplied by a factor is rounded once: by rnd, any map that
   moves a number by at most u times itself. *)
Section Rounded.
Variables (rnd : R -> R) (u : R).
Hypothesis rnd_near : forall x, `|rnd x - x| <= u * `|x|.
Let cq : R := Num.sqrt (K'%:R / K%:R).

Definition near (x y : R) : Prop := `|y - x| <= u * `|x|.
Definition moved (a x : R) : R := rnd (a * x) / a.
Definition round_weight (w : nat -> R) : nat -> R := @pad A D id (fun i => rnd (Num.sqrt r * w i)).
Definition rounded_layers :=
  @grown_layers A d d' F (splitmap K K') (fun x => rnd (c x)) _ round_weight.

Definition moved_attn (p : attn A) : attn A := @Attn A
  (fun o i => moved cq (wq p o i)) (fun o => moved cq (bq p o))
  (wk p) (bk p) (wv p) (bv p) (wo p) (bo p).
Definition moved_weight w i := moved (Num.sqrt r) (w i).
Definition moved_layer (l : weights A (nat -> R)) : weights A _ :=
  Weights (moved_weight (norm1 l)) (moved_weight (norm2 l)) (moved_attn (attw l)) (mlpw l).
Definition moved_all (k : checkpoint A (nat -> R)) : checkpoint A _ :=
  Checkpoint (embedding k) (map moved_layer (blocks k)) (moved_weight (last_norm k))
    (head_w k).

Let D_pos := leq_trans D_gt0 D_le.
Let r_gt0 : 0 < r. Proof. by rewrite divr_gt0 ?ltr0n. Qed.
Let q_neq0 : Num.sqrt r != 0. Proof. by rewrite gt_eqF ?sqrtr_gt0. Qed.
Let cq_neq0 : cq != 0. Proof. by rewrite gt_eqF // sqrtr_gt0 divr_gt0 ?ltr0n. Qed.

Lemma moved_near a x : a != 0 -> near x (moved a x).
Proof.
move=> a_neq0; rewrite /near /moved -{2}[x](mulKf a_neq0) [a^-1 * _]mulrC -mulrBl.
rewrite normrM normfV ler_pdivr_mulr ?normr_gt0 // (le_trans (rnd_near _)) //.
by rewrite normrM mulrCA mulrC.
Qed.

Lemma movedK a x : a != 0 -> a * moved a x = rnd (a * x).
Proof. by move=> a_neq0; rewrite /moved mulrC mulfVK. Qed.

Lemma moved_norm m m' w (eps' : R) : hid (dm m) = D -> hid (dm m') = D' ->
  norm_grown (A := A) (fun=> True) id m m' (rms D (eps' / r) (moved_weight w))
    (rms D' eps' (round_weight w)).
Proof.
have r_neq0 : r != 0 by rewrite gt_eqF.
move=> mD m'D x x' _; rewrite mD m'D -{2}[eps'](mulfVK r_neq0); apply: rmsnorm_scaled => //; first exact: emb_id.
by move=> i i_lt; rewrite /round_weight (pad_at _ (emb_id D_le)) // -(movedK _ q_neq0) mulrC.
Qed.

(** MAIN 10 llama_backward: A grown Llama whose scaled weights and eps are each
    rounded once computes, in exact arithmetic and at any depth, the very function
    of the old Llama with q, the norm weights and eps each moved by at most one
    rounding of themselves, all other weights as they are. *)
Theorem llama_backward (k : checkpoint A (nat -> R)) s : ~~ odd K -> ~~ odd K' ->
  rounded_layers (blocks k) s ->
  [/\ forall x, near x (moved cq x), forall x, near x (moved (Num.sqrt r) x),
      near eps (moved r eps)
    & forall t v, (t < T)%N -> (v < V)%N ->
      logits softmax T (llama d' F' (rnd (r * eps)) (power theta (K'%:R / K%:R))
        (@grow A d _ round_weight k s)) tok t v
      = logits softmax T (llama d F (moved r eps) theta (moved_all k)) tok t v].
Proof.
move=> K_even K'_even sP; have r_neq0 : r != 0 by rewrite gt_eqF.
split=> [x|x||t v t_lt v_lt]; try exact: moved_near.
have [eP _ _] := rotary_halves_map K_even K'_even K_le.
apply: (@decoder_logits A softmax T (fun=> True) V id _ _ id id c id) => //.
apply: (written_is_growth (e := splitmap K K') (c := c)) => //.
- by move=> w z i; apply: rope_c.
- by move=> z; apply: full_rotary_pads; rewrite ?oppr0 // => i _; rewrite frequency_kept.
- by apply/List.Forall_forall.
- by move=> v0 _; apply/pad_padded/emb_id.
- rewrite -(map_id s); apply: (deeper_map (Q := fun=> True)) sP => [l _ _ ->|//|].
    split; try exact: moved_norm; last exact: grow_mlp_scattered.
    have [[q q0] [b b0] kS bkS vS bvS oS boS] := @grow_attn_scattered A d d'
      (splitmap K K') (fun x => rnd (c x)) D_le G_le Rp_le eP (attw l).
    have cE x : rnd (c x) = c (moved cq x) := esym (movedK x cq_neq0).
    split=> //; first by split=> // o i o_lt i_lt; rewrite q // [RHS]/= -cE.
    by split=> // o o_lt; rewrite b // [RHS]/= -cE.
  exact/List.Forall_forall.
- exact: moved_norm.
by move=> v0 i _ i_lt /=; rewrite (pad_at _ (emb_id D_le)).
Qed.

End Rounded.

(** MAIN 8 stablelm_lossless: For every StableLm, sequential or parallel, with
    rotary on any part of its heads, every size that does not shrink, every
    weight and every token, the decoder of what the grower writes (writers
    centred, then everything scattered and scaled as in a Llama, theta kept) has
    the logits of the old one. *)
Theorem stablelm_lossless k s n par : (n <= K)%N ->
  stablelm_layers (blocks (centre_all D k)) s -> forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T
    (stablelm d' F' (eps * r) theta n par (grow_stablelm (centre_all D k) s)) tok t v
  = logits softmax T (stablelm d F eps theta n par k) tok t v.
Proof.
move=> n_le sP t v t_lt v_lt; set m := stablelm d F _ _ _ _ k.
have [P_emb P_att P_ff P_sum] := @centred_streams R T softmax m D_gt0.
have blind_ln z : mean_blind m (layernorm D eps z) by apply: layernorm_mean_blind.
have mE : centred m = stablelm d F eps theta n par (centre_all D k).
  by rewrite /centred /stablelm /decoder_of /= -!map_comp.
apply: (@layernorm_decoder_lossless R softmax T V id _ id id id c id m) => //.
- apply: Forall_map => l; split=> // [||u]; try exact: blind_ln.
  exact: partial_rotary_pads.
- exact: blind_ln.
rewrite mE; apply: (grow_is_growth (e := id) (c := c)) => //=.
- exact: emb_id.
- by move=> u w i; apply: rope_c.
- by move=> u; apply: partial_rotary_pads.
- by move=> i; apply: mean_centre.
- apply: Forall_map => l; rewrite -/(stablelm d F eps theta n par _) -mE.
  pose l0 : layer A := @layer_of A _ (layernorm D eps) (rope theta n) mask par l.
  by split=> [x u|x]; [apply: (P_att l0 x u) | apply: (P_ff l0 x)].
move=> z x x' x0 xP; apply: layernorm_zero_mean => //; first exact: emb_id.
  exact: grow_weightE.
exact/pad_padded/emb_id.
Qed.

End Families.
