From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*   prodmap n n' f e == on an axis of blocks of n, grown to blocks of n':    *)
(*                       block h goes to block f h, and lane k to lane e k.   *)
(*      headmap R R' == the query heads: (g, r) stays (g, r), R grows to R'.  *)
(* qmap R K R' K' e == the query axis: (g R + r) K + k |-> (g R' + r) K' + e k*)
(*     kvmap K K' e == the key/value axis: g K + k |-> g K' + e k             *)
(*    splitmap K K' == e of a full rotary head: its halves start at 0, K'/2.  *)
(*   spreadmap b b' == an axis of blocks of b, each grown to b' at its end.    *)
(*  reshape, flatten == (group, repeat, lane) view of a flat axis, and back.  *)
(******************************************************************************)

Definition prodmap n n' (f e : nat -> nat) a := f (a %/ n) * n' + e (a %% n).
Definition headmap R R' := prodmap R R' id id.
Definition qmap R K R' K' e := prodmap K K' (headmap R R') e.
Definition kvmap K K' e := prodmap K K' id e.
Definition spreadmap b b' := prodmap b b' id id.
Definition splitmap K K' k := if k < K./2 then k else K'./2 + (k - K./2).

Lemma prodmap_at n n' f e h k :
  k < n -> prodmap n n' f e (h * n + k) = f h * n' + e k.
Proof.
move=> k_n; have n_gt0 : 0 < n by apply: leq_ltn_trans k_n.
by rewrite /prodmap divnMDl // modnMDl divn_small // modn_small // addn0.
Qed.

(** The issue's formula: old (g, r, k) goes to (g R' + r) K' + e k. *)
Lemma qmapE R K R' K' e g r k : r < R -> k < K ->
  qmap R K R' K' e ((g * R + r) * K + k) = (g * R' + r) * K' + e k.
Proof. by move=> r_R k_K; rewrite /qmap /headmap !prodmap_at. Qed.

Lemma kvmapE K K' e g k : k < K -> kvmap K K' e (g * K + k) = g * K' + e k.
Proof. exact: prodmap_at. Qed.

Lemma flat_lt m n h k : h < m -> k < n -> h * n + k < m * n.
Proof.
move=> h_m k_n; apply: (@leq_trans (h.+1 * n)); last by rewrite leq_mul2r h_m orbT.
by rewrite mulSn addnC ltn_add2r.
Qed.

Lemma divn_lt m n a : a < m * n -> a %/ n < m.
Proof. by case: n => [|n]; rewrite ?muln0 // => a_lt; rewrite ltn_divLR. Qed.

Lemma modn_lt m n a : a < m * n -> a %% n < n.
Proof. by case: n => [|n]; rewrite ?muln0 // => _; rewrite ltn_mod. Qed.

Lemma prodmap_emb m m' n n' f e :
  emb m m' f -> emb n n' e -> emb (m * n) (m' * n') (prodmap n n' f e).
Proof.
move=> [f_m f_incr] [e_n e_incr]; split=> [a a_lt | a b a_b b_lt].
  by apply: flat_lt; [apply/f_m/divn_lt | apply/e_n/(modn_lt a_lt)].
have := leq_div2r n (ltnW a_b); rewrite leq_eqVlt => /orP[/eqP h_eq|h_lt].
  rewrite /prodmap h_eq ltn_add2l e_incr ?(modn_lt b_lt) //.
  by move: a_b; rewrite {1}(divn_eq a n) {1}(divn_eq b n) h_eq ltn_add2l.
have a_lt := ltn_trans a_b b_lt.
apply: leq_trans (leq_addr _ _).
exact: flat_lt (f_incr _ _ h_lt (divn_lt b_lt)) (e_n _ (modn_lt a_lt)).
Qed.

Lemma flat_inj n h h0 k k0 : k < n -> k0 < n ->
  h * n + k = h0 * n + k0 -> h = h0 /\ k = k0.
Proof.
move=> k_n k0_n E; have n_gt0 := leq_ltn_trans (leq0n _) k_n; split.
  have := congr1 (divn^~ n) E.
  by rewrite /= !divnMDl // (divn_small k_n) (divn_small k0_n) !addn0.
by have := congr1 (modn^~ n) E; rewrite /= !modnMDl !modn_small.
Qed.

Lemma img_prodmap m n n' f e h k : k < n' -> (forall i, i < n -> e i < n') ->
  img (m * n) (prodmap n n' f e) (h * n' + k) = img m f h && img n e k.
Proof.
move=> k_n' e_n'; apply/imgP/andP => [[a a_lt]|[/imgP[h0 h0_m <-] /imgP[k0 k0_n <-]]].
  case/(flat_inj (e_n' _ (modn_lt a_lt)) k_n') => <- <-.
  by split; apply: img_at; [apply: divn_lt a_lt | apply: modn_lt a_lt].
by exists (h0 * n + k0); rewrite ?prodmap_at // flat_lt.
Qed.

Lemma headmap_emb G G' R R' : G <= G' -> R <= R' ->
  emb (G * R) (G' * R') (headmap R R').
Proof. by move=> G_le R_le; apply: prodmap_emb; apply: emb_id. Qed.

Section Maps.
Variables (G G' R R' K K' : nat) (e : nat -> nat).
Hypotheses (G_le : G <= G') (R_le : R <= R') (eP : emb K K' e).

(** MAIN 1 query_map: For all groups, repeats and head_dims that do not shrink,
    the flattened map of the query axis is strictly increasing, in range and
    injective, and so is the map of its heads. *)
Theorem query_map :
  [/\ emb (G * R * K) (G' * R' * K') (qmap R K R' K' e),
      {in gtn (G * R * K) &, injective (qmap R K R' K' e)}
    & emb (G * R) (G' * R') (headmap R R')].
Proof.
have hP := headmap_emb G_le R_le; have qP := prodmap_emb hP eP.
by split=> // a b a_lt b_lt; apply: emb_inj qP a_lt b_lt.
Qed.

(** MAIN 1 key_value_map: For all groups and head_dims that do not shrink, the
    flattened map of the key/value axis is strictly increasing, in range and
    injective. *)
Theorem key_value_map : emb (G * K) (G' * K') (kvmap K K' e)
  /\ {in gtn (G * K) &, injective (kvmap K K' e)}.
Proof.
have kvP := prodmap_emb (emb_id G_le) eP.
by split=> // a b a_lt b_lt; apply: emb_inj kvP a_lt b_lt.
Qed.

End Maps.

Lemma even_half n : ~~ odd n -> n./2 + n./2 = n.
Proof. by move=> n_even; rewrite addnn -[RHS]odd_double_half (negPf n_even). Qed.

(** MAIN 1 rotary_halves_map: The map of a full rotary head is strictly
    increasing, in range and injective, and it keeps the rotary pairs: lane k
    and lane k + K/2 become lane k and lane k + K'/2. *)
Theorem rotary_halves_map K K' : ~~ odd K -> ~~ odd K' -> K <= K' ->
  [/\ emb K K' (splitmap K K'), {in gtn K &, injective (splitmap K K')}
    & forall k, k < K./2 -> splitmap K K' k = k
      /\ splitmap K K' (k + K./2) = k + K'./2].
Proof.
move=> /even_half K2 /even_half K'2 K_le; have half_le := half_leq K_le.
have sP : emb K K' (splitmap K K').
  split=> [k k_K | i j i_j j_K]; rewrite /splitmap.
    case: (ltnP k) => [_|k_ge]; first exact: leq_trans k_K K_le.
    by rewrite -{2}K'2 ltn_add2l; apply: leq_trans half_le; rewrite ltn_subLR ?K2.
  case: (ltnP i) => [i_lt|i_ge]; case: (ltnP j) => [j_lt|j_ge] //.
  - by apply: leq_trans (leq_addr _ _); apply: leq_trans half_le.
  - by have := leq_trans (leq_ltn_trans i_ge i_j) (ltnW j_lt); rewrite ltnn.
  by rewrite ltn_add2l ltn_sub2r // (leq_ltn_trans i_ge).
split=> [//|a b a_lt b_lt|k k_lt]; first exact: emb_inj sP a_lt b_lt.
by rewrite /splitmap k_lt ltnNge leq_addl /= addnK addnC.
Qed.

(** MAIN 1 between_map: Putting m - 1 new lanes behind each lane of a head is a
    strictly increasing map in range, and it keeps the rotary pairs: lanes k and
    k + K/2 become lanes m k and m k + m K/2. *)
Theorem between_map m K : 0 < m -> ~~ odd K ->
  emb K (m * K) (muln m) /\ forall k, m * (k + K./2) = m * k + (m * K)./2.
Proof.
move=> m_gt0 K_even; split=> [|k].
  by split=> [k|i j ij _]; rewrite ltn_pmul2l.
by rewrite -{2}(even_half K_even) addnn -mul2n mulnCA mul2n doubleK mulnDr.
Qed.

(** MAIN 1 spread_map: Growing each of n equal blocks of an axis at its end is a
    strictly increasing map in range, and what is new are the ends of the blocks. *)
Theorem spread_map n b b' : b <= b' ->
  emb (n * b) (n * b') (spreadmap b b')
  /\ forall j, j < n * b' -> img (n * b) (spreadmap b b') j = (j %% b' < b).
Proof.
move=> b_le; split=> [|j j_lt]; first exact: prodmap_emb (emb_id (leqnn n)) (emb_id b_le).
rewrite {1}(divn_eq j b') img_prodmap ?(modn_lt j_lt) // => [|i /leq_trans->//].
by rewrite !img_id (divn_lt j_lt).
Qed.

Section Reshape.
Variable A : arith.
Implicit Types (x : vec A).

Definition reshape R K x : nat -> mat A := fun g r k => x ((g * R + r) * K + k).
Definition flatten R K (x3 : nat -> mat A) : vec A := fun a =>
  x3 (a %/ K %/ R) (a %/ K %% R) (a %% K).
Definition pad3 G R K e (x3 : nat -> mat A) : nat -> mat A := fun g r k =>
  pad G id (fun g0 => pad R id (fun r0 => pad K e (x3 g0 r0) k) r) g.

Lemma eq_pad n e x y : (forall i, i < n -> x i = y i) -> pad n e x =1 pad n e y.
Proof. by move=> xy j; rewrite /pad; case: ifP => // /xy. Qed.

Lemma pad_prodmap m m' n n' f e x a : emb m m' f -> emb n n' e -> a < m' * n' ->
  pad (m * n) (prodmap n n' f e) x a
  = pad m f (fun h => pad n e (fun k => x (h * n + k)) (a %% n')) (a %/ n').
Proof.
move=> fP eP a_lt; have pP := prodmap_emb fP eP; have [e_n' _] := eP.
have := divn_lt a_lt; have := modn_lt a_lt; rewrite [X in pad _ _ x X](divn_eq a n').
move: (a %/ n') (a %% n') => h k k_lt h_lt.
case: (boolP (img (m * n) (prodmap n n' f e) (h * n' + k))) => [|a_off].
  rewrite img_prodmap // => /andP[/imgP[h0 h0_m <-] /imgP[k0 k0_n <-]].
  by rewrite (pad_at _ fP) // (pad_at _ eP) //
    -(@prodmap_at n n' f e) // (pad_at _ pP) ?flat_lt.
rewrite pad_off //; move: a_off; rewrite img_prodmap //.
case: (boolP (img m f _)) => [/imgP[h0 h0_m <-] /= k_off|h_off _].
  by rewrite (pad_at _ fP) // pad_off.
by rewrite pad_off.
Qed.

(** MAIN 1 reshape_pad_flatten: Reshaping a query axis to (group, repeat, lane),
    zero-padding each of the three axes and flattening it again is scattering it
    along the flattened map. *)
Theorem reshape_pad_flatten G G' R R' K K' e x : G <= G' -> R <= R' -> emb K K' e ->
  forall a, a < G' * R' * K' ->
  flatten R' K' (pad3 G R K e (reshape R K x)) a
  = pad (G * R * K) (qmap R K R' K' e) x a.
Proof.
move=> G_le R_le eP a a_lt; have h_lt := divn_lt a_lt.
rewrite (pad_prodmap x (headmap_emb G_le R_le) eP a_lt).
by rewrite (pad_prodmap _ (emb_id G_le) (emb_id R_le) h_lt).
Qed.

End Reshape.
