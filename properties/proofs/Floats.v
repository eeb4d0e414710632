From Coq Require Import ZArith Reals Eqdep_dec Psatz.
From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Flocq Require Import Core BinarySingleNaN Plus_error Relative.
From Growproof Require Import Arith Insertion Rotary.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*      float fexp == the reals of a format of Flocq, rounded to nearest,     *)
(*                    ties to even.                                           *)
(* float_arith valid == its rounded sum and product, an arith. There is no    *)
(*                    overflow in it, and one zero.                           *)
(*    flt emin prec == the one of the format FLT: m 2^e, |m| < 2^prec and     *)
(*                    e >= emin. bf16, fp16, fp32 and fp64 are such.          *)
(*  times_power k x == x times 2^k in the format FLX, which has no emin.      *)
(*   bsum, bdot == the ordered sum, from +0, and sum of products, in IEEE 754 *)
(*                    binary floats: signed zeros, infinities and NaN.        *)
(******************************************************************************)

Section Format.
Variable fexp : Z -> Z.
Hypothesis valid : Valid_exp fexp.

Definition format := generic_format radix2 fexp.
Definition rounded := round radix2 fexp ZnearestE.
Record float := Float { real : R; in_format : format real }.

Lemma rounded_format x : format (rounded x).
Proof. exact: generic_format_round. Qed.

Lemma real_inj : injective real.
Proof.
case=> x fx [y fy] /= xy; move: fy; rewrite -xy => fy; congr Float.
apply: eq_proofs_unicity => a b; case: (Req_dec a b); [by left | by right].
Qed.

Definition fzero := Float (generic_format_0 radix2 fexp).
Definition fadd x y := Float (rounded_format (real x + real y)).
Definition fmul x y := Float (rounded_format (real x * real y)).

Lemma rounded_id x : rounded (real x) = real x.
Proof. exact: round_generic (in_format x). Qed.

Lemma float_laws_ : [/\ right_id fzero fadd, left_id fzero fadd,
                        left_zero fzero fmul & right_zero fzero fmul].
Proof.
split=> x; apply: real_inj => /=.
- by rewrite Rplus_0_r rounded_id.
- by rewrite Rplus_0_l rounded_id.
- by rewrite Rmult_0_l; apply: round_0.
by rewrite Rmult_0_r; apply: round_0.
Qed.

Definition float_arith : arith := @Arith float fzero fadd fmul
  (let: And4 law _ _ _ := float_laws_ in law)
  (let: And4 _ law _ _ := float_laws_ in law)
  (let: And4 _ _ law _ := float_laws_ in law)
  (let: And4 _ _ _ law := float_laws_ in law).

End Format.

(** MAIN 10 float_laws: In every format of Flocq's FLT family, rounding to
    nearest, x + 0 and 0 + x are x, and 0 x and x 0 are 0: rounded floats are an
    instance of the arithmetic. *)
Theorem float_laws emin prec (prec_gt0 : Prec_gt_0 prec)
    (valid := FLT_exp_valid emin prec) :
  [/\ right_id (fzero (FLT_exp emin prec)) (fadd valid),
      left_id (fzero (FLT_exp emin prec)) (fadd valid),
      left_zero (fzero (FLT_exp emin prec)) (fmul valid)
    & right_zero (fzero (FLT_exp emin prec)) (fmul valid)].
Proof. exact: float_laws_. Qed.

Definition flt emin prec (prec_gt0 : Prec_gt_0 prec) :=
  float_arith (FLT_exp_valid emin prec).
Definition bf16 := @flt (-133) 8 erefl.
Definition fp16 := @flt (-24) 11 erefl.
Definition fp32 := @flt (-149) 24 erefl.
Definition fp64 := @flt (-1074) 53 erefl.

Section PowersOfTwo.
Variable prec : Z.
Hypothesis prec_gt0 : Prec_gt_0 prec.
Let fexp := FLX_exp prec.
Notation flx := (float_arith (FLX_exp_valid prec)).

Lemma rounded_times_power x k :
  rounded fexp (x * bpow radix2 k) = (rounded fexp x * bpow radix2 k)%R.
Proof.
case: (Req_dec x 0) => [->|x_neq0].
  by rewrite Rmult_0_l /rounded round_0 Rmult_0_l.
rewrite /rounded /round /scaled_mantissa /cexp mag_mult_bpow // /fexp /FLX_exp.
rewrite /F2R /= !Rmult_assoc -!bpow_plus; set m := (mag radix2 x : Z).
have -> : (k + - (m + k - prec) = - (m - prec))%Z by ring.
by have -> : (m + k - prec = m - prec + k)%Z by ring.
Qed.

Lemma power_format k (x : float fexp) : format fexp (real x * bpow radix2 k)%R.
Proof.
by rewrite -(@rounded_id _ x) -rounded_times_power; apply: generic_format_round.
Qed.

Definition times_power k (x : flx) : flx := Float (power_format k x).

(** MAIN 10 powers_of_two: Without underflow (Flocq's FLX), multiplying by a
    power of two is an exact factor, so that q may be scaled when K'/K is a
    power of four. *)
Theorem powers_of_two k : homothety (times_power k).
Proof.
split=> x y; apply: real_inj => /=.
  by rewrite -rounded_times_power Rmult_plus_distr_r.
by rewrite -rounded_times_power Rmult_assoc (Rmult_comm (real y)) -Rmult_assoc.
Qed.

(** MAIN 10 rounding_is_near: Without underflow, rounding to nearest moves a number
    by at most half a unit in the last place of one, times itself. *)
Theorem rounding_is_near x :
  (Rabs (rounded fexp x - x) <= / 2 * bpow radix2 (- prec + 1) * Rabs x)%R.
Proof. exact: Relative.relative_error_N_FLX. Qed.

End PowersOfTwo.

Section Ieee.
Variables prec emax : Z.
Hypotheses (prec_gt0 : Prec_gt_0 prec) (prec_lt : Prec_lt_emax prec emax).
Notation ieee := (binary_float prec emax).
Notation plus := (Bplus mode_NE).
Notation times := (Bmult mode_NE).
Notation emin := (3 - emax - prec)%Z.
Implicit Types x y a : ieee.

Fixpoint bsum n (f : nat -> ieee) : ieee :=
  if n is m.+1 then plus (bsum m f) (f m) else B754_zero false.
Definition bdot n (u v : nat -> ieee) := bsum n (fun i => times (u i) (v i)).

Definition is_zero x := if x is B754_zero _ then true else false.
Definition positive_zero x := x <> B754_zero true.

Lemma plus_finite x y : is_finite (plus x y) -> is_finite x /\ is_finite y.
Proof. by case: x => [?|[]| |????]; case: y => [?|[]| |????]. Qed.

Lemma plus_zero a x : positive_zero a -> is_zero x -> plus a x = a.
Proof. by case: a => [[]|?| |????]; case: x => [[]|?| |????]. Qed.

Lemma times_finite x y : is_finite (times x y) -> is_finite x /\ is_finite y.
Proof. by case: x => [?|[]| |????]; case: y => [?|[]| |????]. Qed.

Lemma times_zero x y :
  is_zero x && is_finite y || is_finite x && is_zero y -> is_zero (times x y).
Proof. by case: x => [?|?| |????]; case: y => [?|?| |????]. Qed.

Lemma plus_correct x y : is_finite (plus x y) ->
  B2R (plus x y) = rounded (FLT_exp emin prec) (B2R x + B2R y)
  /\ Bsign (plus x y) = match Rcompare (B2R x + B2R y) 0 with
                        | Eq => Bsign x && Bsign y | Lt => true | Gt => false end.
Proof.
move=> xy_fin; have [x_fin y_fin] := plus_finite xy_fin.
have := Bplus_correct prec emax _ _ mode_NE x y x_fin y_fin.
case: Rlt_bool => [[-> [_ ->]] //|[E _]].
by move: xy_fin; rewrite -is_finite_SF_B2SF E.
Qed.

Lemma times_correct x y : is_finite (times x y) ->
  B2R (times x y) = rounded (FLT_exp emin prec) (B2R x * B2R y).
Proof.
move=> xy_fin; have := Bmult_correct prec emax _ _ mode_NE x y.
by case: Rlt_bool => [[-> _] //|E]; move: xy_fin; rewrite -is_finite_SF_B2SF E.
Qed.

Lemma sign_le0 x : Bsign x -> (B2R x <= 0)%R.
Proof.
case: x => [s|s| |[] k z b] //= _; try exact: Rle_refl.
by apply: F2R_le_0.
Qed.

Lemma sign_lt0 x : Bsign x -> is_finite x -> positive_zero x -> (B2R x < 0)%R.
Proof. by case: x => [[]|s| |[] k z b] //= _ _ _; apply: F2R_lt_0. Qed.

(** A sum that begins at +0 never becomes -0. *)
Lemma plus_positive_zero a x : positive_zero a -> positive_zero (plus a x).
Proof.
move=> a_pos E; have fin : is_finite (plus a x) by rewrite E.
have [a_fin x_fin] := plus_finite fin; have [] := plus_correct fin.
rewrite E /= => /esym R0.
have sum0 : (B2R a + B2R x = 0)%R.
  by apply: round_plus_eq_0 R0; apply: generic_format_B2R.
rewrite sum0 Rcompare_Eq // => /esym/andP[].
by move=> /sign_lt0/(_ a_fin a_pos) a_lt0 /sign_le0 x_le0; lra.
Qed.

Lemma bsum_positive_zero n f : positive_zero (bsum n f).
Proof. by elim: n => //= n; apply: plus_positive_zero. Qed.

Lemma bsum_insert n m e f g : emb n m e ->
  (forall i, (i < n)%N -> g (e i) = f i) ->
  (forall j, (j < m)%N -> ~~ img n e j -> is_zero (g j)) -> bsum m g = bsum n f.
Proof.
move=> eP g_at g_off; apply: (fold_insert eP g_at) => k j j_m /(g_off _ j_m).
exact/plus_zero/bsum_positive_zero.
Qed.

(** MAIN 10 ieee_zero_insertion: In IEEE 754, with signed zeros, infinities and
    NaN, an ordered sum of products from +0 is bitwise unchanged when products
    of a zero, of either sign, and a finite number are inserted. *)
Theorem ieee_zero_insertion n m e (x y x' y' : nat -> ieee) : emb n m e ->
  (forall i, (i < n)%N -> x' (e i) = x i) -> (forall i, (i < n)%N -> y' (e i) = y i) ->
  (forall j, (j < m)%N -> ~~ img n e j ->
     is_zero (x' j) && is_finite (y' j) || is_finite (x' j) && is_zero (y' j)) ->
  bdot m x' y' = bdot n x y.
Proof.
move=> eP xx yy xy0; apply: bsum_insert (eP) _ _ => [i i_lt|j j_lt j_off].
  by rewrite xx ?yy.
exact/times_zero/xy0.
Qed.

Definition number x : flt emin prec_gt0 :=
  Float (generic_format_B2R prec emax x).

(** MAIN 10 ieee_without_overflow: As long as an ordered sum of products does
    not overflow, IEEE 754 computes the value that it has in the arithmetic of
    rounded floats. *)
Theorem ieee_without_overflow n (x y : nat -> ieee) : is_finite (bdot n x y) ->
  number (bdot n x y) = dot n (fun i => number (x i)) (fun i => number (y i)).
Proof.
rewrite /bdot /dot; elim: n => [|n IHn] fin; first exact: real_inj.
have [/IHn sum_n xy_n] := plus_finite fin; rewrite [RHS]/= -sum_n.
by apply: real_inj; rewrite /= (plus_correct fin).1 times_correct.
Qed.

End Ieee.
