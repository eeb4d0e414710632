From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Dealt Mlp Experts RmsNorm LayerNorm Scale QkNorm.
From Growproof Require Import Decoder Centred Families Written.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(* What a grower writes is a growth of the decoder, block by block, if norms  *)
(* commute with padding on whatever the streams hold: P.                      *)
(******************************************************************************)

Section Blocks.
Variables (R : rcfType) (power : R -> R -> R) (f : family).
Hypothesis powerM : forall x a b, power (power x a) b = power x (a * b).
Variables (c : config R) (g : growth).
Hypothesis gP : possible c g.
Let A := ring_arith R.
Let N : Type := (nat -> R) * (nat -> R).
Local Notation params := (params (ring_arith R)).
Local Notation weights := (weights (ring_arith R)).
Local Notation ratio := (ratio R).
Local Notation norm := (norm f).
Local Notation turn := (turn power).
Local Notation layer_of := (layer_of power f).
Local Notation model_of := (model_of power f).
Local Notation d := (old g).
Local Notation d' := (new g).
Local Notation D := (hid (old g)).
Local Notation D' := (hid (new g)).
Local Notation K := (lane (old g)).
Local Notation K' := (lane (new g)).
Local Notation F := (mlp_old g).
Local Notation F' := (mlp_new g).
Local Notation c' := (grow_config c g).
Local Notation place := (place c g).
Local Notation of_score := (of_score c g).
Local Notation of_norm := (of_norm c g).
Local Notation of_head := (of_head R f g).
Local Notation writes_norm := (writes_norm f g).
Local Notation writes_layer := (writes_layer power f c g).
Local Notation silent_params := (silent_params (R := R) g).

Lemma old_gt0 : [/\ (0 < D)%N, (0 < grp d)%N, (0 < rep d)%N & (0 < K)%N].
Proof. exact: sizes_gt0 gP. Qed.

Lemma new_gt0 : [/\ (0 < D')%N, (0 < grp d')%N, (0 < rep d')%N, (0 < K')%N
  & (0 < copies g)%N].
Proof.
have [D_gt0 G_gt0 R_gt0 K_gt0] := old_gt0.
have /andP[m_gt0 s_gt0] : (0 < copies g)%N && (0 < share g)%N.
  by rewrite -muln_gt0 (leq_trans R_gt0) // (shares_hold gP).
split=> //; first exact: leq_trans D_gt0 (hid_fits gP).
- by apply: leq_trans (copies_fit gP); rewrite muln_gt0 G_gt0.
- exact: leq_trans s_gt0 (shares_fit gP).
exact: leq_trans K_gt0 (lane_fits gP).
Qed.

Lemma divisor_gt0 : (0 < divisor c D)%N /\ (0 < divisor_new c g)%N.
Proof.
have [D_gt0 _ _ _] := old_gt0; have [D'_gt0 _ _ _ _] := new_gt0.
have div_gt0 : (0 < divisor c D)%N.
  have := divisor_fits gP; rewrite /divisor; case: norm_size => //= n.
  by case/and3P.
by split=> //; rewrite /divisor_new; case: keep.
Qed.

Lemma ratio_gt0 m n : (0 < m)%N -> (0 < n)%N -> 0 < ratio m n.
Proof. by move=> m_gt0 n_gt0; rewrite sqrtr_gt0 divr_gt0 ?ltr0n. Qed.

Lemma timesP (a : R) : homothety (A := A) ( *%R a).
Proof. by split=> x y; [apply: mulrDr | apply: mulrA]. Qed.

Lemma turn_grown kd t : respects (A := A) K K' place (turn c K kd t)
  (turn c' K' (grow_kind power c g kd) t).
Proof.
have [_ _ _ K_gt0] := old_gt0; have [_ _ _ K'_gt0 _] := new_gt0.
have idP (e : nat -> nat) : respects (A := A) K K' e id id by split.
rewrite /turn /=; case: theta => [base|] //=; have := lanes_fitP gP.
have K_le := lane_fits gP.
rewrite /lanes_fit /Written.place /grow_theta; case: lanes => [n n_le|/andP[K_even]] /=.
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
have [_ _ _ K_gt0] := old_gt0; have [_ _ _ K'_gt0 _] := new_gt0.
rewrite /scaled /Written.of_score /=; case: (score c) => [a|]; first by rewrite mul1r.
exact: (score_scale_field R K_gt0 K'_gt0).2.
Qed.

(* eps becomes s^2 m/n times itself for what is read times s *)
Lemma eps_grown m n : (0 < m)%N -> (0 < n)%N ->
  eps c' = eps c * ((of_norm * ratio n m) ^+ 2 * (m%:R / n%:R)).
Proof.
move=> m_gt0 n_gt0; have [S_gt0 S'_gt0] := divisor_gt0.
congr (_ * _); rewrite exprMn !sqr_sqrtr ?divr_ge0 ?ler0n // -mulrA.
by rewrite mulf_div [(m%:R * _)]mulrC divff ?mulr1 // mulf_neq0 ?pnatr_eq0 -?lt0n.
Qed.

Lemma qk_grown l l' : writes_layer l l' ->
  attn_grown (A := A) d d' id (heads g) place ( *%R of_score)
    (normed_qk f K (qry d) (eps c) (q_norm l))
    (normed_qk f K' (qry d') (eps c') (q_norm l'))
    (normed_qk f K (kv d) (eps c) (k_norm l))
    (normed_qk f K' (kv d') (eps c') (k_norm l'))
    (attw l) (attw l').
Proof.
case=> _ _ _ _ _ + + + _.
have [_ G_gt0 Rp_gt0 K_gt0] := old_gt0; have [_ G'_gt0 Rp'_gt0 K'_gt0 m_gt0] := new_gt0.
rewrite /writes_qk /normed_qk /of_q /of_k /centres_qk.
have idP : emb D D' id := emb_id (hid_fits gP); have eP := place_emb gP.
have [G_le Rp_le s_le] := And3 (copies_fit gP) (shares_hold gP) (shares_fit gP).
have [S_gt0 S'_gt0] := divisor_gt0; have rN := ratio_gt0 S_gt0 S'_gt0.
have q_gt0 : (0 < qry d)%N by rewrite !muln_gt0 G_gt0 Rp_gt0.
have q'_gt0 : (0 < qry d')%N by rewrite !muln_gt0 G'_gt0 Rp'_gt0.
have k_gt0 : (0 < grp d * copies g * K)%N by rewrite !muln_gt0 G_gt0 m_gt0.
have k'_gt0 : (0 < kv d')%N by rewrite muln_gt0 G'_gt0.
have plain cq ck : attn_dealt (A := A) d d' id place (copies g) (share g) cq ck
    (centre_qk d false (attw l)) (attw l') ->
  attn_dealt (A := A) d d' id place (copies g) (share g) cq ck (attw l) (attw l').
  by case; split.
case: qk => [_ _ /plain aP|qP kP /plain aP|qP kP /plain aP|qP kP aP].
- apply: (dealt_grown G_le Rp_le s_le idP eP) => //; first exact: timesP.
  case: aP => qA bqA [kA k0] [bkA bk0] vA bvA oA boA; split=> //.
  + by split=> // o i o_lt i_lt; rewrite kA // [LHS]/= mul1r.
  by split=> // o o_lt; rewrite bkA // [LHS]/= mul1r.
- refine (@qk_norm_of_heads R d d' id place _ _ _ _ _ _ of_score G_le Rp_le s_le K_gt0
    idP eP _ _ _ aP (fun=> _) (fun=> _) (fun=> _) (fun=> _) _ _ _ _) => //.
  + by rewrite mulr_gt0 ?ratio_gt0.
  + exact: eps_grown.
  + by move=> h k _ /qP.
  by move=> m k _ k_lt; rewrite kP // mul1r copied_lane.
- refine (@qk_norm_whole R d d' id place _ _ _ _ _ _ of_score G_le Rp_le s_le K_gt0
    idP eP _ _ _ _ aP _ _ _ _ _ _ _ qP _) => //.
  + by rewrite mulr_gt0 ?ratio_gt0.
  + by rewrite mulr_gt0 ?ratio_gt0.
  + by rewrite muln_gt0 G_gt0.
  + exact: eps_grown.
  + exact: eps_grown.
  by move=> i /kP; rewrite mul1r.
refine (@qk_layernorm_of_heads R d d' id place _ _ _ _ _ of_score G_le Rp_le s_le K_gt0
  _ idP eP _ _ _ (fun h k => one R f + q_norm l (h * K + k)%N)
  (fun h k => one R f + q_norm l' (h * K' + k)%N)
  (fun h k => one R f + k_norm l (h * K + k)%N)
  (fun h k => one R f + k_norm l' (h * K' + k)%N) _ aP _ _ _) => //.
- by rewrite mulr_gt0 ?ratio_gt0.
- by have := lane_fits gP; rewrite leq_eqVlt => /orP[/eqP->|]; [right | left].
- exact: eps_grown.
- move=> h k h_lt k_lt; rewrite -(prodmap_at _ (heads g) place h k_lt).
  by rewrite [LHS]qP // flat_lt.
move=> h k h_lt k_lt; rewrite -(kvmapE _ place h k_lt).
by rewrite [LHS]kP ?flat_lt // mul1r copied_at.
Qed.

Variables (softmax : seq A -> seq A) (T V : nat).

Section Streams.
Variable P : vec A -> Prop.
Hypothesis norms_grow : forall w w' x x', writes_norm of_norm w w' -> P x ->
  rpadded D D' id x x' -> rpadded D D' id (norm c D w x) (norm c' D' w' x').
Hypothesis post_free : post f -> ~~ is_layer f /\ forall x, P x.

Lemma norm_if_grown (b : bool) w w' x x' :
  (b -> P x) -> writes_norm of_norm w w' -> rpadded D D' id x x' ->
  rpadded D D' id (norm_if f b c D w x) (norm_if f b c' D' w' x').
Proof.
by rewrite /norm_if; case: b => // Px wP xP; apply: norms_grow => //; apply: Px.
Qed.

Lemma out_grown w w' x x' : writes_norm of_norm w w' -> rpadded D D' id x x' ->
  rpadded D D' id (fun i => norm_if f (post f) c D w x i * res_times c)
    (fun i => norm_if f (post f) c' D' w' x' i * res_times c').
Proof.
move=> wP xP; have [|y y0] := @norm_if_grown (post f) _ _ _ _ _ wP xP.
  by move=> /post_free[].
split=> [i i_lt|i i_lt i_off]; first by rewrite -(y i).
by rewrite y0 //; apply: mul0r.
Qed.

Lemma norm0 (cc : config R) n w y i : ~~ is_layer f -> (forall j, (j < n)%N -> y j = 0) ->
  (i < n)%N -> norm cc n w y i = 0.
Proof.
move=> /negPf rmsE y0 i_lt; rewrite /norm rmsE; case: norm_size => [m|].
  by rewrite /masked_norm /= y0 // mulr0 subr0 mul0r mulr0 addr0.
by rewrite /rms y0 // mul0r mulr0.
Qed.

Section Models.
Variables (times times' : A -> A) (tb tb' : mat A) (ps ps' : option (mat A)).
Variables (ls ls' : seq params) (w w' : N) (hw hw' : mat A) (hb hb' : vec A).
Let m := model_of c d F times tb ps ls w hw hb.
Let m' := model_of c' d' F' times' tb' ps' ls' w' hw' hb'.

Lemma silent_grown l : silent_params l -> silent_layer softmax T m' (layer_of c' d' l).
Proof.
move=> [wo0 bo0 ff0]; apply: silent_writers => //= y y0.
suff out0 v i : (i < D')%N -> norm_if f (post f) c' D' v y i * res_times c = 0.
  by move=> i i_lt; split; apply: out0.
move=> i_lt; rewrite /norm_if; case: ifP => [/post_free[rmsE _]|_].
  by rewrite norm0 // mul0r.
by rewrite y0 // mul0r.
Qed.

Lemma written_grown :
  (forall v, (v < V)%N ->
    rpadded D D' id (fun i => times (tb v i)) (fun i => times' (tb' v i))) ->
  match ps, ps' with
  | Some q, Some q' => forall t, (t < T)%N -> rpadded D D' id (q t) (q' t)
  | None, None => True | _, _ => False end ->
  deeper writes_layer silent_params ls ls' ->
  norm_grown (A := A) P id m m' (fun x i => of_head^-1 * norm c D w x i)
    (norm c' D' w') ->
  of_head != 0 ->
  (forall v i, (v < V)%N -> (i < D)%N -> hw' v i = hw v i * of_head) ->
  (forall v, (v < V)%N -> hb' v = hb v) ->
  (forall t v, (v < V)%N -> P (embedded m t v)) ->
  List.Forall (fun l0 => let l := layer_of c d l0 in
    (forall x t, P (p1 l (att_out softmax T m l x t)))
    /\ forall x, P (p2 l (ff_out m l x))) ls ->
  (forall x y, P x -> P y -> P (fun i => x i + y i)) ->
  model_grown softmax T P V id (heads g) place (unit_place g) id ( *%R of_score)
    ( *%R of_head^-1) m m'.
Proof.
move=> tbP psP lsP nfP h_neq0 hwP hbP P0 Pls Padd; split=> //.
- exact/emb_id/(hid_fits gP).
- exact: heads_emb gP.
- exact: place_emb gP.
- exact: mlp_fits gP.
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
    exact/mlp_scattered_free/(mlp_fits gP).
  by case=> ee /experts_scattered_free sP; exists ee.
by move=> v i y v_lt i_lt; rewrite [LHS]/= hwP // -mulrA mulVKf.
Qed.

End Models.
End Streams.
End Blocks.
