From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*  respects K K' e r r' == the maps r, r' of head vectors keep old lanes     *)
(*                        equal, whatever the new lanes hold, and r' keeps    *)
(*                        zero lanes zero: they commute with padding.         *)
(*  homothety c == c is a scalar factor that is exact: it goes through sums   *)
(*                 and the left factor of a product.                          *)
(*  rotary n cos sin u == lane pairs (k, k + n/2) turned; lanes past n pass.  *)
(******************************************************************************)

Section Rotary.
Variables (A : arith) (opp : A -> A).
Hypothesis opp0 : opp zero = zero.
Implicit Types (u cos sin : vec A) (c : A -> A).

Definition respects K K' e (r r' : vec A -> vec A) :=
  (forall u u', agree K e u u' -> agree K e (r u) (r' u'))
  /\ (forall u', off K K' e u' -> off K K' e (r' u')).

Record homothety c := Homothety {
  cD : {morph c : x y / x +. y}; cM : forall x y, c (x *. y) = c x *. y }.

Definition rotary n cos sin u : vec A := fun k =>
  if k < n./2 then u k *. cos k +. opp (u (k + n./2) *. sin k)
  else if k < n then u k *. cos (k - n./2) +. u (k - n./2) *. sin (k - n./2)
  else u k.

Lemma rotary_c n cos sin c : homothety c -> {morph c : x / opp x} ->
  forall u k, rotary n cos sin (fun k => c (u k)) k = c (rotary n cos sin u k).
Proof. by case=> D M N u k; rewrite /rotary -!M -N; do 2?case: ifP; rewrite ?D. Qed.

Lemma addl_ltF m n : (m + n < n) = false.
Proof. by rewrite ltnNge leq_addl. Qed.

Lemma half_add k n : k < n./2 -> k + n./2 < n.
Proof.
move=> k_lt; rewrite -[ltnRHS]odd_double_half -addnn.
by apply: leq_trans (leq_addl _ _); rewrite ltn_add2r.
Qed.

(** MAIN 1 partial_rotary_pads: Partial rotary, which turns the first n lanes of
    a head and passes the others, commutes with padding the head at its end. *)
Theorem partial_rotary_pads n K K' cos sin : n <= K -> K <= K' ->
  respects K K' id (rotary n cos sin) (rotary n cos sin).
Proof.
move=> n_K K_le; split=> [u u' uu k k_K | u' u_off j j_K].
  rewrite /rotary; case: ltnP => [k_lt|k_ge].
    by rewrite !uu // (leq_trans (half_add k_lt)).
  by rewrite !uu // (leq_ltn_trans (leq_subr _ _)).
rewrite img_id -leqNgt => K_j; have n_j := leq_trans n_K K_j.
have h_j : n./2 <= j by apply: leq_trans n_j; rewrite -divn2 leq_div.
by rewrite /rotary !ltnNge n_j h_j /=; apply: u_off; rewrite // img_id -leqNgt.
Qed.

Lemma img_split K K' j : ~~ odd K -> ~~ odd K' -> K <= K' -> j < K' ->
  img K (splitmap K K') j = ((if j < K'./2 then j else j - K'./2) < K./2).
Proof.
move=> K_even K'_even K_le j_lt.
have [_ _ pair] := rotary_halves_map K_even K'_even K_le.
apply/imgP/idP => [[k k_lt <-]|].
  case: (ltnP k K./2) => [k_h|h_k].
    by rewrite (pair _ k_h).1 (leq_trans k_h) ?half_leq.
  have k_h: k - K./2 < K./2 by rewrite ltn_subLR // even_half.
  by rewrite -(subnK h_k) (pair _ k_h).2 addl_ltF addnK.
case: (ltnP j) => [_ j_h|h_j j_h].
  exists j; rewrite ?(pair _ j_h).1 // (leq_trans j_h) //.
  by rewrite -{2}(even_half K_even) leq_addr.
by exists (j - K'./2 + K./2); rewrite ?(pair _ j_h).2 ?half_add ?subnK.
Qed.

(** MAIN 1 full_rotary_pads: Full rotary commutes with padding a head whose two
    halves are placed at 0 and at K'/2, if the old frequencies are kept; the new
    ones are free. *)
Theorem full_rotary_pads K K' cos sin cos' sin' :
  ~~ odd K -> ~~ odd K' -> K <= K' ->
  agree K./2 id cos cos' -> agree K./2 id sin sin' ->
  respects K K' (splitmap K K') (rotary K cos sin) (rotary K' cos' sin').
Proof.
move=> K_even K'_even K_le coss sins.
have [_ _ pair] := rotary_halves_map K_even K'_even K_le.
split=> [u u' uu k k_K | u' u_off j j_K].
  have old l : l < K./2 -> [/\ l < K'./2, u' l = u l
                             & u' (l + K'./2) = u (l + K./2)].
    move=> l_h; have l_K : l < K := leq_ltn_trans (leq_addr _ _) (half_add l_h).
    split; first exact: leq_trans l_h (half_leq K_le).
      by rewrite -{1}(pair _ l_h).1 uu.
    by rewrite -(pair _ l_h).2 uu ?half_add.
  rewrite /rotary k_K; case: (ltnP k K./2) => [k_h|h_k].
    have [k_h' ul uh] := old _ k_h.
    by rewrite (pair _ k_h).1 k_h' ul uh coss ?sins.
  move: (k - K./2) (subnK h_k) k_K => l <- l_K.
  have l_h: l < K./2 by rewrite -[ltnRHS](even_half K_even) ltn_add2r in l_K.
  have [l_h' ul uh] := old _ l_h.
  by rewrite (pair _ l_h).2 !addl_ltF !addnK half_add // ul uh coss ?sins.
rewrite img_split // /rotary j_K; case: ifP => [j_h|/negbT h_j] j_off.
  rewrite !u_off ?img_split ?half_add ?j_h // ?mul0x ?opp0 ?addx0 //.
  by rewrite addl_ltF addnK.
rewrite -leqNgt in h_j; have j_h : j - K'./2 < K'./2 by rewrite ltn_subLR // even_half.
rewrite !u_off ?img_split ?j_h ?mul0x ?addx0 // ?(leq_ltn_trans (leq_subr _ _)) //.
by rewrite (leq_gtF h_j).
Qed.

(** MAIN 1 between_rotary_pads: Full rotary commutes with putting m - 1 new lanes
    behind each lane of a head, lane k to lane m k, if new pair m k turns as old
    pair k does; the other new frequencies are free. *)
Theorem between_rotary_pads m K cos sin cos' sin' : ~~ odd K -> 0 < m ->
  agree K./2 (muln m) cos cos' -> agree K./2 (muln m) sin sin' ->
  respects K (m * K) (muln m) (rotary K cos sin) (rotary (m * K) cos' sin').
Proof.
move=> K_even m_gt0 coss sins.
have half : (m * K)./2 = m * K./2 by rewrite -{1}(even_half K_even) addnn -mul2n
  mulnCA mul2n doubleK.
have imgE j : j < m * K -> img K (muln m) j = (m %| j).
  move=> j_lt; apply/imgP/dvdnP => [[k _ <-]|[k j_eq]]; first by exists k; rewrite mulnC.
  by exists k; rewrite ?[m * k]mulnC -?j_eq // -(@ltn_pmul2l m) // mulnC -j_eq.
split=> [u u' uu k k_K | u' u_off j j_K].
  rewrite /rotary half !ltn_pmul2l // -!mulnDr -!mulnBr k_K.
  case: ifP => k_h; first by rewrite !uu ?half_add // coss ?sins.
  have k_lt : k - K./2 < K./2 by rewrite ltn_subLR ?even_half // leqNgt k_h.
  by rewrite !uu ?(leq_ltn_trans (leq_subr _ _) k_K) // coss ?sins.
have z j0 : j0 < m * K -> ~~ (m %| j0) -> u' j0 = zero.
  by move=> j0_lt j0_off; rewrite u_off ?imgE.
rewrite imgE // /rotary half j_K => j_off.
have mD : m %| m * K./2 by apply: dvdn_mulr.
case: ifP => j_h.
  have jh_lt : j + m * K./2 < m * K by rewrite -half half_add ?half.
  by rewrite !z ?dvdn_addl // !mul0x opp0 addx0.
have j_ge : m * K./2 <= j by rewrite leqNgt j_h.
have jh_lt := leq_ltn_trans (leq_subr (m * K./2) j) j_K.
by rewrite !z ?dvdn_subl // !mul0x addx0.
Qed.

End Rotary.
