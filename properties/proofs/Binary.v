From Coq Require Import ZArith SpecFloat.
From Coq Require PrimFloat FloatOps.
From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Flocq Require Import Core BinarySingleNaN.
From Flocq Require Binary Bits.
From Growproof Require Import Arith Attention Mlp Experts Decoder Families Run.
From Growproof Require Import Spelled Floats.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* The spelled decoder in Flocq's binary64, rounding to nearest, ties to even.*)
(* binary.py draws models, and the clone has to give the same bits.           *)
(*                                                                            *)
(*    ieee == Flocq's binary64.                                               *)
(*  binary == the arithmetic of binary64: its sum and product, but one zero,  *)
(*            None, which is +0 and -0, and of which every multiple is it.    *)
(* value x == x as a binary64; its zero is +0.                                *)
(*  tables == values of exp, erf, tanh, cos, sin and the square root, of      *)
(*            rescaled frequencies, and of powers for each base, at the       *)
(*            arguments that occur. At any other argument: NaN.               *)
(******************************************************************************)

Notation ieee := (binary_float 53 1024).
Definition prec_gt0 : Prec_gt_0 53 := erefl.
Definition prec_lt : Prec_lt_emax 53 1024 := erefl.
Local Notation plus := (@Bplus 53 1024 prec_gt0 prec_lt mode_NE).
Local Notation times := (@Bmult 53 1024 prec_gt0 prec_lt mode_NE).
Local Notation per := (@Bdiv 53 1024 prec_gt0 prec_lt mode_NE).

(* The same operations without the proofs that Flocq's carry along. *)
Definition checked (z : spec_float) : ieee :=
  (if valid_binary 53 1024 z as b return valid_binary 53 1024 z = b -> ieee
   then @SF2B 53 1024 z else fun=> B754_nan) erefl.
Definition quick2 (op : Z -> Z -> spec_float -> spec_float -> spec_float) (x y : ieee) :=
  checked (op 53%Z 1024%Z (B2SF x) (B2SF y)).

Lemma checkedE (x : ieee) z : z = B2SF x -> checked z = x.
Proof.
move=> ->; have xP := valid_binary_B2SF 53 1024 x; apply: B2SF_inj.
rewrite /checked; move: (erefl _); rewrite {2 3}xP => H; exact: B2SF_SF2B.
Qed.

Lemma round_even sx m e l :
  SpecFloat.binary_round_aux 53 1024 sx m e l = binary_round_aux 53 1024 mode_NE sx m e l.
Proof.
rewrite /SpecFloat.binary_round_aux /binary_round_aux; case: shr_fexp => r e' /=.
congr (let: (_, _) := shr_fexp _ _ _ _ _ in _).
by case: (loc_of_shr_record r) => // -[] //=; rewrite /Round.cond_incr; case: Z.even.
Qed.

Lemma normalize_even m e s : SpecFloat.binary_normalize 53 1024 m e s
  = B2SF (binary_normalize 53 1024 prec_gt0 prec_lt mode_NE m e s).
Proof.
have round sx p : SpecFloat.binary_round 53 1024 sx p e
    = binary_round 53 1024 mode_NE sx p e.
  rewrite /SpecFloat.binary_round /binary_round /shl_align_fexp.
  by case: shl_align => p' e'; apply: round_even.
by case: m => [|p|p] //=; rewrite B2SF_SF2B; apply: round.
Qed.

Lemma quick_plus x y : quick2 SFadd x y = plus x y.
Proof.
apply: checkedE; case: x y => [?|?| |????] [?|?| |????] //=; try by case: Bool.eqb.
exact: normalize_even.
Qed.

Lemma quick_times x y : quick2 SFmul x y = times x y.
Proof.
apply: checkedE; case: x y => [?|?| |????] [?|?| |????] //=.
by rewrite B2SF_SF2B; apply: round_even.
Qed.

Lemma quick_per x y : quick2 SFdiv x y = per x y.
Proof.
apply: checkedE; case: x y => [?|?| |????] [?|?| |????] //=.
by rewrite B2SF_SF2B; case: SFdiv_core_binary => -[m e] l; apply: round_even.
Qed.

(* One zero. *)
Definition cell (x : ieee) : option ieee := if is_zero x then None else Some x.
Definition value (x : option ieee) : ieee := odflt (B754_zero false) x.
Definition add64 x y := match x, y with
  | None, _ => y | _, None => x | Some x, Some y => cell (quick2 SFadd x y) end.
Definition mul64 x y := match x, y with
  | Some x, Some y => cell (quick2 SFmul x y) | _, _ => None end.

Lemma add64x0 : right_id None add64. Proof. by case. Qed.
Lemma add640x : left_id None add64. Proof. by []. Qed.
Lemma mul640x : left_zero None mul64. Proof. by []. Qed.
Lemma mul64x0 : right_zero None mul64. Proof. by case. Qed.
Definition binary : arith := Arith add64x0 add640x mul640x mul64x0.

Local Notation positive := (@positive_zero 53 1024).
Local Notation bdot := (@bdot 53 1024 prec_gt0 prec_lt).

Lemma cell_sum x y : positive x -> value (cell (plus x y)) = plus x y.
Proof.
move=> /(@plus_positive_zero _ _ prec_gt0 prec_lt _ y); rewrite /cell.
by case: (plus x y) => // -[].
Qed.

Lemma add64_value x z : positive (value x) -> value (add64 x (cell z)) = plus (value x) z.
Proof.
rewrite {1}/cell; case: ifP => [z0|z0] x_pos.
  by rewrite (plus_zero prec_gt0 prec_lt) //; case: x {x_pos}.
case: x x_pos => [x|] /= x_pos; first by rewrite quick_plus cell_sum.
by case: z z0 => [|[]| |[]].
Qed.

Lemma mul64_cell x y : is_finite (times (value x) (value y)) ->
  mul64 x y = cell (times (value x) (value y)).
Proof.
rewrite /mul64 /cell; case: x y => [x|] [y|] fin; rewrite ?quick_times //;
  have [x_fin y_fin] := times_finite fin; rewrite times_zero //=.
- by rewrite andbT x_fin orbT.
by rewrite y_fin.
Qed.

(** MAIN 10 binary64_dot: The arithmetic in which the decoder is compared with the clone
    bit for bit is Flocq's binary64: an ordered sum of products of it that does not
    overflow has the bits of the one that starts at +0, signed zeros among its terms. *)
Theorem binary64_dot n (x y : vec binary) :
  is_finite (bdot n (fun i => value (x i)) (fun i => value (y i))) ->
  value (dot n x y) = bdot n (fun i => value (x i)) (fun i => value (y i)).
Proof.
rewrite /Floats.bdot /dot; elim: n => [|n IHn] //= fin.
have [/IHn sumE /mul64_cell ->] := plus_finite fin.
rewrite add64_value sumE //; exact: bsum_positive_zero.
Qed.

(* How models are given, and bits told: as Coq's own floats, and as words of 64 bits. *)
Local Open Scope Z_scope.
Local Notation float := PrimFloat.float.
Definition of_float (x : float) : binary := cell (checked (FloatOps.Prim2SF x)).
Definition to_word (x : binary) : Z :=
  Bits.bits_of_b64 (Binary.BSN2B 53 1024 Bits.default_nan_pl64 (value x)).
Definition vector (l : seq float) : vec binary := nth None (map of_float l).
Definition matrix (l : seq (seq float)) : mat binary :=
  let rows := map (map of_float) l in fun i => nth None (nth [::] rows i).

Definition table := seq (binary * binary).
Definition pairs (l : seq (float * float)) : table :=
  [seq (of_float p.1, of_float p.2) | p <- l].
Record tables := Tables { t_exp : table; t_erf : table; t_tanh : table; t_cos : table;
  t_sin : table; t_root : table; t_rescaled : table; t_power : seq (binary * table) }.
Definition same_bits (x y : binary) : bool := match value x, value y with
  | B754_zero _, B754_zero _ => true
  | B754_infinity s, B754_infinity s' => Bool.eqb s s'
  | B754_finite s m e _, B754_finite s' m' e' _ =>
    [&& Bool.eqb s s', Z.eqb e e' & Pos.eqb m m']
  | _, _ => false
  end.
Definition at_bits (S : Type) (none : S) (t : seq (binary * S)) x : S :=
  nth none (map snd t) (find (fun e => same_bits e.1 x) t).
Definition missing : binary := Some B754_nan.
Definition look : table -> binary -> binary := at_bits missing.

Section Functions.
Variable tb : tables.
Definition opp64 (x : binary) : binary := omap (@Bopp 53 1024) x.
Definition div64 (x y : binary) : binary := cell (quick2 SFdiv (value x) (value y)).
Definition functions64 : functions binary := @Functions binary opp64 div64
  (look (t_root tb))
  (fun n => cell (checked (SpecFloat.binary_normalize 53 1024 (Z.of_nat n) 0 false)))
  (look (t_exp tb)) (fun x y => Bltb (value x) (value y)).
Local Notation E := functions64.
Local Notation n_ := (whole E).

(* theta^-(2k/n); which powers of which theta there are, the table says *)
Definition speed64 (base : binary) n k : binary :=
  div64 (n_ 1) (look (at_bits [::] (t_power tb) base) (div64 (n_ (2 * k)) (n_ n))).
Definition capped (cap : option binary) (x : binary) : binary :=
  if cap is Some c then look (t_tanh tb) (div64 x c) *. c else x.
Definition kind_of base window cap : kind binary :=
  let angle t s := n_ t *. look (t_rescaled tb) s in
  @Kind binary base (fun t s => look (t_cos tb) (angle t s))
    (fun t s => look (t_sin tb) (angle t s))
    (fun t t' s => if (t' <= t)%N && (t < t' + window)%N then capped cap s
                   else Some (B754_infinity true)).

Definition silu (x : binary) : binary := div64 x (n_ 1 +. exp E (opp64 x)).
Definition half : binary := div64 (n_ 1) (n_ 2).
(* a: sqrt 2; sqrt (2 / pi), and b: 0.044715 *)
Definition gelu (a x : binary) : binary :=
  x *. half *. (n_ 1 +. look (t_erf tb) (div64 x a)).
Definition gelu_tanh (a b x : binary) : binary :=
  half *. x *. (n_ 1 +. look (t_tanh tb) (a *. (x +. b *. (x *. x *. x)))).
Definition relu (x : binary) : binary := if below E x zero then zero else x.
Definition relu2 (x : binary) : binary := relu x *. relu x.

(* weights and biases, one behind the other *)
Definition given := seq (seq (seq float) * seq float).
Definition weight (l : given) i := matrix (nth ([::], [::]) l i).1.
Definition bias (l : given) i := vector (nth ([::], [::]) l i).2.
Definition mlp_of (l : given) : mlp_weights binary := MlpWeights (weight l 0) (bias l 0)
  (weight l 1) (bias l 1) (weight l 2) (bias l 2).
Definition attn_of (l : given) : attn binary := Attn (weight l 0) (bias l 0)
  (weight l 1) (bias l 1) (weight l 2) (bias l 2) (weight l 3) (bias l 3).
Definition experts_of F active renormed router (ls : seq given) : feed binary :=
  let each := map mlp_of ls in
  Sparse (@Experts binary (size ls) F (route_of E active renormed) (matrix router)
    (nth (mlp_of [::]) each)).

Definition logit_words f c d F (k : weights binary) V tok : seq (seq Z) :=
  let T := size tok in
  let y := run (softmax_of E) T (spelled E speed64 f c d F k) (nth 0%N tok) in
  mkseq (fun t => mkseq (fun v => to_word (y t v)) V) T.

(** MAIN 8 words_logits: What is compared with the clone's bits is the logits of the
    decoder of the theorems, in the arithmetic of binary64. *)
Theorem words_logits f c d F k V tok t v : (odflt (lane d) (lanes c) <= lane d)%N ->
  (t < size tok)%N -> (v < V)%N ->
  nth 0 (nth [::] (logit_words f c d F k V tok) t) v
  = to_word (logits (softmax_of E) (size tok) (spelled E speed64 f c d F k)
      (nth 0%N tok) t v).
Proof.
move=> n_le t_lt v_lt; rewrite /logit_words nth_mkseq // nth_mkseq //.
by rewrite spelled_logits.
Qed.

End Functions.
