From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith Linear Attention.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*  unit_at u r k == the matrix that is u at (r, k) and zero elsewhere.       *)
(******************************************************************************)

Section Counterexamples.
Variables (A : arith) (u : A) (softmax : seq A -> seq A) (scale scale' : A -> A).
Hypothesis uu : u *. u = u.

Definition unit_at r k : mat A := fun i j => if (i == r) && (j == k) then u else zero.
Local Notation nobias := (fun=> zero).
Local Notation nomask := (fun _ _ => id).
Local Notation norot := (fun=> id).

(* two tokens: zero, then u in lane 0 *)
Let x : mat A := unit_at 1 0.

Ltac simplify_all := rewrite /attention /affine /context /prob /score /head /query /key
  /value /affine /dot; cbn; rewrite /unit_at /= ?(mul0x, mulx0, addx0, add0x, uu).

(** MAIN 11 naive_pad_false: Padding the projections of two heads at their end
    while head_dim grows from 1 to 2 is wrong for every softmax that tells two
    rows of scores apart: these weights and tokens give another output. *)
Theorem naive_pad_false (p := Attn (unit_at 0 0) nobias (unit_at 0 0) nobias
                                   (unit_at 1 0) nobias (unit_at 1 1) nobias) :
  u *. (nth zero (softmax [:: scale zero; scale zero]) 1 *. u)
    <> u *. (nth zero (softmax [:: scale' zero; scale' u]) 1 *. u) ->
  ~ padded 2 4 id (attention softmax nomask 2 (Dims 2 2 1 1) norot scale id id p x 1)
                  (attention softmax nomask 2 (Dims 4 2 1 2) norot scale' id id p x 1).
Proof.
move=> differ [/(_ 1 isT) same _]; apply: differ; move: same.
by simplify_all => ->.
Qed.

(** MAIN 11 unscaled_query_false: Leaving out the factor on q while head_dim
    grows from 1 to 4 is wrong for every softmax that tells the two score scales
    apart: these weights and tokens give another output. *)
Theorem unscaled_query_false (p := Attn (unit_at 0 0) nobias (unit_at 0 0) nobias
                                        (unit_at 0 0) nobias (unit_at 0 0) nobias) :
  u *. (nth zero (softmax [:: scale zero; scale u]) 1 *. u)
    <> u *. (nth zero (softmax [:: scale' zero; scale' u]) 1 *. u) ->
  ~ padded 1 1 id (attention softmax nomask 2 (Dims 1 1 1 1) norot scale id id p x 1)
                  (attention softmax nomask 2 (Dims 1 1 1 4) norot scale' id id p x 1).
Proof.
move=> differ [/(_ 0 isT) same _]; apply: differ; move: same.
by simplify_all => ->.
Qed.

End Counterexamples.
