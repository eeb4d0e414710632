From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*                     The glossary of all the proofs                         *)
(*                                                                            *)
(*          arith == the weakest arithmetic that the proofs need: zero, +.    *)
(*                   and *. with x +. 0 = 0 +. x = x and 0 *. x = x *. 0 = 0. *)
(*                   Nothing is associative, commutative or distributive, so  *)
(*                   that integers, reals and rounded floats are instances.   *)
(*          vec A == a vector of A: a function of the index. A size goes      *)
(*                   along with it; entries from the size on do not matter.   *)
(*          mat A == a matrix of A: row, then column.                         *)
(*       osum n f == ((0 + f 0) + f 1) + ... + f n.-1, in index order.        *)
(*      dot n u v == the ordered sum of the products u i *. v i, i < n.       *)
(* affine n W b x == W x + b: row o is dot n (W o) x +. b o. No bias: b = 0.  *)
(*      emb n m e == e is an axis embedding: a strictly increasing map from   *)
(*                   the old indices, below n, to the new ones, below m.      *)
(*      img n e j == the new index j is the place of some old index.          *)
(* agree n e x x' == x' holds, at the place of each old index, what x does.   *)
(*   off n m e x' == x' is zero at every new index that is no old one's place.*)
(* padded n m e x x' == both: x' is x with zeros inserted.                    *)
(*      pad n e x == the zero padding of x, as a function (see padE).         *)
(*                                                                            *)
(* Sizes: T tokens, D hidden, G key/value groups, R query heads per group,    *)
(* K head_dim, F MLP, V vocabulary. A prime marks the grown side.             *)
(******************************************************************************)

Record arith := Arith {
  num :> Type;
  zero : num;
  add : num -> num -> num;
  mul : num -> num -> num;
  addx0 : right_id zero add;
  add0x : left_id zero add;
  mul0x : left_zero zero mul;
  mulx0 : right_zero zero mul
}.
Arguments zero {a}.
Arguments add {a}.
Arguments mul {a}.
Notation "x +. y" := (add x y) (at level 50, left associativity).
Notation "x *. y" := (mul x y) (at level 40, left associativity).
Notation vec A := (nat -> num A).
Notation mat A := (nat -> nat -> num A).

Section Sums.
Variable A : arith.
Implicit Types (f x : vec A) (W : mat A).

Fixpoint osum n f : A := if n is m.+1 then osum m f +. f m else zero.
Definition dot n x y := osum n (fun i => x i *. y i).
Definition affine n W (b x : vec A) : vec A := fun o => dot n (W o) x +. b o.

Lemma eq_osum n f g : (forall i, i < n -> f i = g i) -> osum n f = osum n g.
Proof.
elim: n => //= n IHn fg; rewrite fg // IHn // => i i_n.
exact/fg/ltnW.
Qed.

Lemma osum0 n f : (forall i, i < n -> f i = zero) -> osum n f = zero.
Proof.
elim: n => //= n IHn f0; rewrite f0 // addx0 IHn // => i i_n.
exact/f0/ltnW.
Qed.

End Sums.

Section Embeddings.
Implicit Types e : nat -> nat.

Definition emb n m e :=
  (forall i, i < n -> e i < m) /\ (forall i j, i < j -> j < n -> e i < e j).
Definition img n e j := has (fun i => e i == j) (iota 0 n).

Lemma imgP n e j : reflect (exists2 i, i < n & e i = j) (img n e j).
Proof.
apply: (iffP hasP) => [[i]|[i i_n <-]]; last by exists i; rewrite ?mem_iota.
by rewrite mem_iota => i_n /eqP <-; exists i.
Qed.

Lemma img_at n e i : i < n -> img n e (e i).
Proof. by move=> i_n; apply/imgP; exists i. Qed.

Lemma img_id n j : img n id j = (j < n).
Proof. by apply/imgP/idP => [[i i_n <-]|] //; exists j. Qed.

Lemma emb_id n m : n <= m -> emb n m id.
Proof. by move=> n_m; split=> // i /leq_trans->. Qed.

Lemma emb_inj n m e i j : emb n m e -> i < n -> j < n -> e i = e j -> i = j.
Proof.
case=> _ incr i_n j_n eij; case: (ltngtP i j) => // [i_j|j_i].
  by have := incr _ _ i_j j_n; rewrite eij ltnn.
by have := incr _ _ j_i i_n; rewrite eij ltnn.
Qed.

Lemma emb_ge n m e i : emb n m e -> i < n -> i <= e i.
Proof.
case=> _ incr; elim: i => // i IHi i_n.
exact: leq_ltn_trans (IHi (ltnW i_n)) (incr _ _ (ltnSn i) i_n).
Qed.

Lemma emb_leq n m e : emb n m e -> n <= m.
Proof.
case: n => // n eP; have [/(_ n (ltnSn n)) en_m _] := eP.
exact: leq_ltn_trans (emb_ge eP (ltnSn n)) en_m.
Qed.

End Embeddings.

Section Padding.
Variable A : arith.
Implicit Types (x : vec A) (e : nat -> nat).

Definition agree n e x x' := forall i, i < n -> x' (e i) = x i.
Definition off n m e x' := forall j, j < m -> ~~ img n e j -> x' j = zero.
Definition padded n m e x x' := agree n e x x' /\ off n m e x'.
Definition pad n e x : vec A := fun j =>
  let i := find (fun i => e i == j) (iota 0 n) in if i < n then x i else zero.

Lemma pad_off n e x j : ~~ img n e j -> pad n e x j = zero.
Proof. by rewrite /img has_find size_iota /pad => /negPf->. Qed.

Lemma pad_at n m e x i : emb n m e -> i < n -> pad n e x (e i) = x i.
Proof.
move=> eP i_n; rewrite /pad; set k := find _ _.
have has_k : has (fun i' => e i' == e i) (iota 0 n) := img_at e i_n.
have k_n : k < n by move: has_k; rewrite has_find size_iota.
move/(nth_find 0): has_k; rewrite -/k k_n nth_iota // add0n => /eqP.
by move/(emb_inj eP k_n i_n) ->.
Qed.

Lemma padE n m e x x' : emb n m e ->
  padded n m e x x' <-> forall j, j < m -> x' j = pad n e x j.
Proof.
move=> eP; have [e_m _] := eP; split=> [[x_at x_off] j j_m | x_pad].
  case: (boolP (img n e j)) => [/imgP[i i_n <-]|j_off].
    by rewrite x_at // (pad_at x eP).
  by rewrite x_off // pad_off.
split=> [i i_n | j j_m j_off]; last by rewrite x_pad // pad_off.
by rewrite x_pad ?e_m // (pad_at x eP).
Qed.

End Padding.
