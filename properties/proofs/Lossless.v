From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Dealt Mlp Experts RmsNorm LayerNorm Scale QkNorm.
From Growproof Require Import Decoder Centred Families Written Blocks Averaged.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(* The decoder of what a grower writes has the logits of the old one.         *)
(*                                                                            *)
(*    written == what a grower writes, by the norms of the family.            *)
(******************************************************************************)

Section Lossless.
Variables (R : rcfType) (power : R -> R -> R) (f : family).
Hypothesis powerM : forall x a b, power (power x a) b = power x (a * b).
Variables (c : config R) (g : growth).
Hypothesis gP : possible c g.
Let A := ring_arith R.
Let N : Type := (nat -> R) * (nat -> R).
Local Notation weights := (weights (ring_arith R)).
Local Notation ratio := (ratio R).
Local Notation one := (one R f).
Local Notation norm := (norm f).
Local Notation embed_times := (embed_times f).
Local Notation model_of := (model_of power f).
Local Notation decoder := (decoder power f).
Local Notation centrable := (centrable f).
Local Notation d := (old g).
Local Notation d' := (new g).
Local Notation D := (hid (old g)).
Local Notation D' := (hid (new g)).
Local Notation K := (lane (old g)).
Local Notation K' := (lane (new g)).
Local Notation F := (mlp_old g).
Local Notation F' := (mlp_new g).
Local Notation c' := (grow_config c g).
Local Notation of_score := (of_score c g).
Local Notation of_norm := (of_norm c g).
Local Notation of_embedding := (of_embedding R f g).
Local Notation of_head := (of_head R f g).
Local Notation writes_norm := (writes_norm f g).
Local Notation writes_layer := (writes_layer power f c g).
Local Notation silent_params := (silent_params (R := R) g).
Local Notation writes := (writes power f c g).

Variables (softmax : seq A -> seq A) (T V : nat) (tok : nat -> nat).
Hypothesis tok_lt : forall t, (t < T)%N -> (tok t < V)%N.
Variables k k' : weights.

Let D_gt0 : (0 < D)%N. Proof. by have [] := sizes_gt0 gP. Qed.
Let D_le : (D <= D')%N := hid_fits gP.
Let D'_gt0 : (0 < D')%N := leq_trans D_gt0 D_le.

Definition same_logits (k1 : weights) := forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (decoder c' d' F' k1) tok t v
  = logits softmax T (decoder c d F k) tok t v.

Lemma head_neq0 : of_head != 0.
Proof.
rewrite /Written.of_head /Written.of_embedding.
case: tied; case: root_embedding; rewrite ?oner_eq0 //.
by rewrite gt_eqF // ratio_gt0.
Qed.

Lemma embed_times_grown x : embed_times c' D' (x * of_embedding) = embed_times c D x.
Proof.
rewrite /embed_times /Written.of_embedding /=; case: root_embedding; last by rewrite mulr1.
rewrite -!mulrA; congr (_ * _); rewrite mulrA -sqrtrM ?divr_ge0 ?ler0n // mulfVK //.
by rewrite pnatr_eq0 -lt0n.
Qed.

Lemma plain_growth :
  (forall w w' x x', writes_norm of_norm w w' -> rpadded D D' id x x' ->
    rpadded D D' id (norm c D w x) (norm c' D' w' x')) ->
  (forall x x', rpadded D D' id x x' ->
    rpadded D D' id (fun i => of_head^-1 * norm c D (last_norm k) x i)
      (norm c' D' (last_norm k') x')) ->
  (post f -> ~~ is_layer f) -> writes V T k k' -> same_logits k'.
Proof.
move=> normP lastP postP [eP pP bP nP hP hbP] t v t_lt v_lt.
suff mP : model_grown softmax T (fun=> True) V id (heads g) (place c g) (unit_place g) id
    ( *%R of_score) ( *%R of_head^-1) (decoder c d F k) (decoder c' d' F' k').
  exact: (decoder_logits (ev := id) mP tok_lt t_lt v_lt).
apply: (written_grown powerM gP) => //.
- by move=> w w' x x' wP _; apply: normP.
- by move=> /postP.
- move=> w w_lt; have [e0 e1] := eP w w_lt; split=> [i i_lt|i i_lt i_off] /=.
    by rewrite e0 // embed_times_grown.
  by rewrite e1 // /embed_times; apply: mul0r.
- by move=> x x' _; apply: lastP.
- exact: head_neq0.
exact/List.Forall_forall.
Qed.

(* Norms that keep their divisor. *)
Lemma keep_scalars : keep g ->
  [/\ of_norm = 1, eps c' = eps c, divisor_new c g = divisor c D
    & (divisor c D <= D)%N].
Proof.
move=> gK; have [S_gt0 _] := divisor_gt0 gP.
rewrite /Written.of_norm /= /divisor_new gK /Written.ratio divff ?pnatr_eq0 -?lt0n //.
rewrite sqrtr1 mulr1; split=> //; have := divisor_fits gP; rewrite /divisor.
by case: norm_size => //= n /and3P[].
Qed.

Lemma norm_keeps w x i : keep g -> (i < D)%N -> norm c D w x i = norm c' D w x i.
Proof.
move=> gK i_lt; have [_ eE dE _] := keep_scalars gK.
rewrite /norm eE /= gK dE /divisor; case: norm_size => //=.
case: (is_layer f); rewrite /masked_norm /ln /rms /meansq /=.
  pose y j : R := x j - rsum D x / D%:R * (j < D)%:R.
  have yE j : (j < D)%N -> centre D x j = y j by rewrite /y /centre => ->; rewrite mulr1.
  by rewrite (@eq_rsum _ D _ (fun j => y j * y j)) ?yE // => j /yE->; rewrite expr2.
pose y j : R := x j - rsum D x / D%:R * 0.
have yE j : x j = y j by rewrite /y mulr0 subr0.
rewrite (@eq_rsum _ D _ (fun j => y j * y j)) => [|j _]; last by rewrite -yE expr2.
by rewrite {1}(yE i) addr0.
Qed.

Lemma masked_grown w w' x x' : keep g -> writes_norm of_norm w w' ->
  rpadded D D' id x x' -> rpadded D D' id (norm c D w x) (norm c' D' w' x').
Proof.
move=> gK; have [nE _ dE S_le] := keep_scalars gK; rewrite nE => -[wP [bP b0]] xP.
suff [y y0] : rpadded D D' id (norm c' D w x) (norm c' D' w' x').
  by split=> // i i_lt; rewrite norm_keeps // y.
rewrite /norm /= gK dE; apply: masked_norm_padded => //; rewrite ?subr0 //.
- by move=> s; rewrite /= mul0r.
- exact: emb_id.
- split=> // i i_lt; rewrite img_id -leqNgt => /(leq_trans S_le).
  by rewrite leqNgt => /negPf->; rewrite andbF.
- by move=> i i_lt; rewrite wP // mulr1.
by split=> [i i_lt|i i_lt i_off]; case: ifP => // _; [apply: bP | apply: b0].
Qed.

Lemma not_kept : ~~ keep g -> [/\ norm_size c = None, norm_size c' = None,
  divisor c D = D & of_norm = ratio D D'].
Proof.
move=> /negPf gK; have := divisor_fits gP; rewrite /Written.of_norm /divisor_new /divisor /= gK.
by case: norm_size.
Qed.

Lemma rms_grown w w' x x' : ~~ is_layer f -> writes_norm of_norm w w' ->
  rpadded D D' id x x' -> rpadded D D' id (norm c D w x) (norm c' D' w' x').
Proof.
move=> /negPf rmsE; have [gK|gK] := boolP (keep g); first exact: masked_grown.
have [sE sE' dE nE] := not_kept gK; rewrite nE /norm sE sE' rmsE /= => -[wP _] xP.
rewrite dE /divisor_new (negPf gK); apply: rmsnorm_scaled => //; exact: emb_id.
Qed.

(* A last norm takes back a factor of the head. *)
Lemma last_grown x x' : ~~ is_layer f \/ of_head = 1 ->
  (forall w w' x x', writes_norm of_norm w w' -> rpadded D D' id x x' ->
    rpadded D D' id (norm c D w x) (norm c' D' w' x')) ->
  writes V T k k' -> rpadded D D' id x x' ->
  rpadded D D' id (fun i => of_head^-1 * norm c D (last_norm k) x i)
    (norm c' D' (last_norm k') x').
Proof.
move=> fE normP kP xP; have lP := last_norm_at kP; case: fE => [/negPf rmsE|hE]; last first.
  rewrite hE invr1 ?mulr1 in lP *; have [y y0] := normP _ _ _ _ lP xP.
  by split=> // i i_lt; rewrite mul1r [LHS]y.
have oneK z : one + (z - one) = z by rewrite addrC subrK.
pose w := (fun i => (one + (last_norm k).1 i) / of_head - one, (last_norm k).2) : N.
have wP : writes_norm of_norm w (last_norm k').
  by case: lP => lP bP; split=> // i i_lt; rewrite lP //= oneK mulrA mulrAC.
have [y y0] := normP _ _ _ _ wP xP; split=> // i i_lt; rewrite [LHS]y //.
rewrite /norm rmsE; case: norm_size => [n|]; rewrite /masked_norm /rms /= oneK.
  by rewrite !addr0 mulrAC mulrC.
by rewrite mulrAC mulrC.
Qed.

(** MAIN 8 rms_lossless: For every decoder with RMSNorms (before a block, behind it or
    both, of q and k or not, any rotary, mask and cap, one MLP or experts, any
    multipliers), every size that does not shrink, the query heads of each group dealt
    out over any number of copies of its key/value head, every weight and every token,
    the decoder of what the grower writes has the logits of the old one. *)
Theorem rms_lossless : ~~ is_layer f -> writes V T k k' -> same_logits k'.
Proof.
move=> rmsE kP; have normP w w' x x' := @rms_grown w w' x x' rmsE.
by apply: plain_growth => // x x' xP; apply: last_grown => //; left.
Qed.

(** MAIN 8 masked_lossless: For every decoder with RMSNorms, or with LayerNorms before its
    blocks, tied or not, masked already or not, the decoder of what the grower writes,
    where the norms keep their weights, eps and divisor, and the mean leaves only the lanes
    of before, has the logits of the old one. *)
Theorem masked_lossless : keep g -> (is_layer f -> ~~ post f /\ ~~ root_embedding f) ->
  writes V T k k' -> same_logits k'.
Proof.
move=> gK layerP kP; have normP w w' x x' := @masked_grown w w' x x' gK.
apply: plain_growth => // [x x' xP|postE].
  apply: last_grown => //; have [/layerP[_ /negPf rootE]|] := boolP (is_layer f); last by left.
  by right; rewrite /Written.of_head /Written.of_embedding rootE if_same.
by apply/negP => /layerP[]; rewrite postE.
Qed.

(** MAIN 8 same_width_lossless: For every decoder with LayerNorms before its blocks, tied
    or not, whose hidden_size stays while all else grows, the decoder of what the grower
    writes, with nothing centred, has the logits of the old one. *)
Theorem same_width_lossless : ~~ keep g -> D' = D -> is_layer f -> ~~ post f ->
  writes V T k k' -> same_logits k'.
Proof.
move=> gK DE layerE /negPf postE kP; have [sE sE' dE nE] := not_kept gK.
have rE : ratio D D' = 1 by rewrite /Written.ratio DE divff ?sqrtr1 // pnatr_eq0 -lt0n.
have hE : of_head = 1.
  by rewrite /Written.of_head /Written.of_embedding rE !if_same.
have eE : eps c' = eps c.
  by rewrite /= dE /divisor_new (negPf gK) DE divff ?mulr1 // pnatr_eq0 -lt0n.
have normP w w' x x' : writes_norm of_norm w w' -> rpadded D D' id x x' ->
    rpadded D D' id (norm c D w x) (norm c' D' w' x').
  rewrite nE rE /norm sE sE' eE layerE DE => -[wP [bP _]] [xP _].
  split=> [i i_lt|i i_lt]; last by rewrite img_id i_lt.
  rewrite -(eq_ln (eps c) (fun i => one + w.1 i) w.2 (x := x')) => [|j /xP//|//].
  by rewrite /ln /rms wP // mulr1 [w'.2 _]bP.
by apply: plain_growth => // [x x' xP|]; [apply: last_grown => //; right | rewrite postE].
Qed.

Lemma lanes_fit_in : lanes_in c K /\ lanes_in c' K'.
Proof.
have := lanes_fitP gP; rewrite /lanes_fit /lanes_in /=; case: lanes => [n n_le|_] //=.
by rewrite n_le (leq_trans n_le (lane_fits gP)).
Qed.

Section Stock.
(* Nothing keeps its divisor from here on. *)
Hypothesis gK : ~~ keep g.
Let whole : norm_size c = None. Proof. by have [] := not_kept gK. Qed.
Let whole' : norm_size c' = None. Proof. by have [] := not_kept gK. Qed.

Lemma layer_grown_mean0 : centrable -> forall w w' x x',
  writes_norm of_norm w w' -> mean D x = 0 -> rpadded D D' id x x' ->
  rpadded D D' id (norm c D w x) (norm c' D' w' x').
Proof.
move=> /and5P[layerE _ _ _ _] w w' x x'; have [_ _ dE ->] := not_kept gK.
move=> [wP bP] x0; rewrite /norm whole whole' layerE /= dE /divisor_new (negPf gK).
by apply: layernorm_zero_mean => //; apply: emb_id.
Qed.

Lemma centrable_scalars : centrable ->
  [/\ of_head = 1, of_embedding = 1
    & forall n e (x : R), embed_times e n x = x * (1 * ebd_times e)].
Proof.
move=> /and5P[_ _ _ _ /andP[/negPf rootE _]].
have eE : of_embedding = 1 by rewrite /Written.of_embedding rootE.
by split=> // [|n e x]; rewrite ?/Written.of_head ?eE ?if_same // /embed_times rootE.
Qed.

Lemma centred_growth times' tb' ps' ls' w' hw' hb' : centrable ->
  (forall v, (v < V)%N ->
    rpadded D D' id (centred_times f c d k v) (fun i => times' (tb' v i))) ->
  match omap (fun q t => centre D (q t)) (wpe k), ps' with
  | Some q, Some q' => forall t, (t < T)%N -> rpadded D D' id (q t) (q' t)
  | None, None => True | _, _ => False end ->
  deeper writes_layer silent_params (map (centre_params D) (blocks k)) ls' ->
  writes_norm (of_norm / of_head) (last_norm k) w' ->
  (forall v i, (v < V)%N -> (i < D)%N -> hw' v i = head_w k v i * of_head) ->
  (forall v, (v < V)%N -> hb' v = head_b k v) ->
  forall t v, (t < T)%N -> (v < V)%N ->
  logits softmax T (model_of c' d' F' times' tb' ps' ls' w' hw' hb') tok t v
  = logits softmax T (decoder c d F k) tok t v.
Proof.
move=> fam tP pP bP nP hP hbP t v t_lt v_lt; have [inK _] := lanes_fit_in.
have [headE _ _] := centrable_scalars fam; move: nP; rewrite headE divr1 => nP.
rewrite -(@centred_kept R power f c d F softmax T D_gt0 fam inK whole k) //.
have [P0 Pls Padd] := @centred_mean0 R power f c d F softmax T D_gt0 fam k.
suff mP : model_grown softmax T (fun x => mean D x = 0) V id (heads g) (place c g)
    (unit_place g) id
    ( *%R of_score) ( *%R of_head^-1) (centred (decoder c d F k))
    (model_of c' d' F' times' tb' ps' ls' w' hw' hb').
  exact: (decoder_logits (ev := id) mP tok_lt t_lt v_lt).
rewrite centredE; rewrite centredE in P0 Pls.
apply: (written_grown powerM gP) => //; first exact: layer_grown_mean0.
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
  same_logits k'.
Proof.
move=> fam [eP pP bP nP hP hbP]; have [_ eE tE] := centrable_scalars fam.
apply: centred_growth => // v v_lt; have [e0 e1] := eP v v_lt.
split=> [i i_lt|i i_lt i_off]; rewrite tE.
  by rewrite [embedding k' v i]e0 // eE mulr1 -(centre_times (fun j _ => tE D c _)).
by rewrite [embedding k' v i]e1 //; apply: mul0r.
Qed.

Lemma centred_twice k1 : centrable ->
  writes V T (centre_weights D k) (centre_weights D' k1) ->
  same_logits k1.
Proof.
move=> fam [eP pP bP nP hP hbP] t v t_lt v_lt; have [_ inK'] := lanes_fit_in.
have [_ eE tE] := centrable_scalars fam.
rewrite -(@centred_kept R power f c' d' F' softmax T D'_gt0 fam inK' whole' k1) // centredE.
apply: centred_growth => // u u_lt; have [e0 e1] := eP u u_lt.
split=> [i i_lt|i i_lt i_off]; rewrite [LHS](centre_times (fun j _ => tE D' c' _))
    ?(leq_trans i_lt D_le) //.
  by rewrite [centre D' _ _]e0 // eE mulr1 -(centre_times (fun j _ => tE D c _)).
by rewrite [centre D' _ _]e1 //; apply: mul0r.
Qed.

(** MAIN 8 averaged_lossless: For every decoder with LayerNorms before its blocks, tied or
    not, the decoder of what the grower writes, where each writer of the residual, and a
    head that is tied, holds in its new lanes the mean of its old ones, has the logits of
    the old one. *)
Theorem averaged_lossless k1 : centrable -> writes V T k k1 ->
  same_logits (average_weights (tied g) D k1).
Proof.
move=> fam [eP pP bP nP hP hbP]; have [_ eE _] := centrable_scalars fam.
apply: centred_twice => //; split=> //=.
- move=> v v_lt; have [old new] := centre_average gP (eP v v_lt); split=> // i i_lt.
  by rewrite [LHS]old // (centre_times (fun j _ => erefl)).
- move: pP; case: (wpe k) (wpe k1) => [q|] [q'|] //= qP t t_lt.
  exact: (centre_average gP (qP t t_lt)).
- rewrite -map_comp; apply: deeper_map bP => [l l' _|l|].
  + exact: (average_params_at gP).
  + exact: (average_silent gP).
  exact/List.Forall_forall.
move=> v i v_lt i_lt; rewrite -hP //; case: tied => //.
by rewrite /average i_lt.
Qed.

End Stock.

(* What a grower writes, by the norms of the family. *)
Definition written : Prop := if is_layer f && ~~ keep g then
    [\/ D' = D /\ writes V T k k', writes V T (centre_weights D k) k'
      | exists2 k1, writes V T k k1 & k' = average_weights (tied g) D k1]
  else writes V T k k'.

(** MAIN 8 families_lossless: For every family in the table of growproof, every config of
    it, masked or not, all sizes that do not shrink, key/value heads repeated and their
    query heads dealt out over the copies or not, every weight and every token, the decoder
    of what the grower writes has the logits of the old one. *)
Theorem families_lossless n together normed : f = family_of n together normed ->
  written -> same_logits k'.
Proof.
move=> fE; have [fam postP] : (is_layer f -> centrable)
    /\ (is_layer f -> ~~ post f /\ ~~ root_embedding f).
  by rewrite fE; case: n {fE} => //; case: normed.
rewrite /written; case: ifP => [/andP[layerE gK]|].
  case=> [[DE kP]|kP|[k1 kP ->]].
  - by apply: same_width_lossless => //; have [] := postP layerE.
  - by apply: layernorm_lossless => //; apply: fam.
  by apply: averaged_lossless => //; apply: fam.
have [layerE /= /negbFE gK|rmsE _] := boolP (is_layer f); last exact: rms_lossless.
exact: masked_lossless.
Qed.

End Lossless.
