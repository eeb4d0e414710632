From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Mlp Experts LayerNorm Decoder Centred Families Run Cache.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* The decoder of a family with each operation in the place where the clone   *)
(* has it, in any arithmetic: what Families.v leaves to the laws of a field   *)
(* (a product's order, 1/sqrt) is said here. InFields.v: over a field it is   *)
(* that of Families.v; Binary.v: it is evaluated in binary64.                 *)
(*                                                                            *)
(*   functions A == what an arithmetic may have besides its sum and product.  *)
(*   normalise == the clone's norm of n lanes, with divisor size.             *)
(*   spelled E speed f c d F k == the decoder of family f, config c, weights k*)
(*            (see Families.v), spelled so. speed base n k: how fast pair k of*)
(*            n turned lanes turns.                                           *)
(*   softmax_of E == exponentials, less the largest score, over their sum.    *)
(*   route_of E n renormed == the n largest entries of the softmax, zero for  *)
(*            the others; over their sum, the largest first, if renormed.     *)
(******************************************************************************)

Record functions (A : arith) := Functions { opp : A -> A; over : A -> A -> A;
  root : A -> A; whole : nat -> A; exp : A -> A; below : A -> A -> bool }.

Section Spelled.
Variables (A : arith) (E : functions A).
Implicit Types (x y : A) (s : seq A) (u w b : vec A) (c : config A).

Definition minus x y := x +. opp E y.
Definition unit := whole E 1.

Definition normalise (layer : bool) size e n w b u : vec A :=
  let u := now n u in let mean := over E (osum n u) (whole E size) in
  let c := now n (fun i =>
    minus (u i) (mean *. (if layer && (i < size) then unit else zero))) in
  let variance := over E (osum n (fun i => c i *. c i)) (whole E size) in
  let g := over E unit (root E (variance +. e)) in
  fun i => c i *. g *. w i +. b i.

(* exponentials over their sum, and the largest of them *)
Definition larger x y := if below E x y then y else x.
Definition softmax_of s := shares (exp E) minus (over E)
  (fun s => if s is x :: s' then foldl larger x s' else zero) s.
Definition before s i j :=
  let x := nth zero s in below E (x i) (x j) || ~~ below E (x j) (x i) && (j < i).
Definition route_of n (renormed : bool) s : seq A :=
  let p := softmax_of s in let m := size p in
  let ranks := [seq count (before p i) (iota 0 m) | i <- iota 0 m] in
  let total := osum n (fun r => nth zero p (index r ranks)) in
  mkseq (fun i => if nth m ranks i < n then
    (if renormed then over E (nth zero p i) total else nth zero p i) else zero) m.

Variables (speed : A -> nat -> nat -> A) (f : family).

Definition weight_of w : vec A := fun i => if plus_one f then unit +. w i else w i.
Definition norm_of c n (wb : vec A * vec A) := normalise (is_layer f)
  (odflt n (norm_size c)) (eps c) n (weight_of wb.1)
  (fun i => if is_layer f then wb.2 i else zero).
Definition norm_where (b : bool) c n wb := if b then norm_of c n wb else id.
(* by_head, each head computed once *)
Definition each_head K n (norm : nat -> vec A -> vec A) u : vec A := let u := now n u in
  let heads := mkseq (fun h => norm h (fun k => u (h * K + k))) (n %/ K) in
  fun a => nth (fun=> zero) heads (a %/ K) (a %% K).
Definition heads_of K n c (w : vec A) : vec A -> vec A :=
  let head layer w := normalise layer K (eps c) K w (fun=> zero) in
  match qk f with
  | NoNorm => id
  | OfHead => each_head K n (fun=> head false (weight_of w))
  | OfAll => normalise false n (eps c) n (weight_of w) (fun=> zero)
  | LayerOfHead =>
    each_head K n (fun h => head true (weight_of (fun k => w (h * K + k))))
  end.
Definition turn_of c K (kd : kind A) t : vec A -> vec A := if theta kd is Some base then
    let n := odflt K (lanes c) in
    rotary (opp E) n (fun k => cosine kd t (speed base n k))
      (fun k => sine kd t (speed base n k))
  else id.

Definition spelled_layer c d (l : params A) : layer A :=
  let out wb u i := norm_where (post f) c (hid d) wb u i *. res_times c in
  Layer (norm_where (pre f) c (hid d) (norm1 l)) (out (out1 l))
    (norm_where (pre f) c (hid d) (if shared f == 1 then norm1 l else norm2 l))
    (out (out2 l)) (heads_of (lane d) (qry d) c (q_norm l))
    (heads_of (lane d) (kv d) c (k_norm l)) (turn_of c (lane d) (of_kind l))
    (masked (of_kind l)) (attw l) (ffw l).
Definition spelled c d F (k : weights A) : model A := Model d F
  (fun x => x *. (if score c is Some a then a else over E unit (root E (whole E (lane d)))))
  (activation c) (has_gate f) (shared f != 0)
  (fun x => (if root_embedding f then x *. root E (whole E (hid d)) else x) *. ebd_times c)
  (embedding k) (wpe k) (map (spelled_layer c d) (blocks k)) (norm_of c (hid d) (last_norm k))
  (head_w k) (head_b k) (cap_logits c).

(* The same from lanes that are the same. *)
Lemma normalise_same layer size e n w w' b b' u u' : agree n id u u' -> agree n id w w' ->
  agree n id b b' -> agree n id (normalise layer size e n w b u)
                                (normalise layer size e n w' b' u').
Proof.
move=> uu ww bb; have now_same : now n u' = now n u.
  rewrite /now; congr (nth zero); apply/eq_in_map => i; rewrite mem_iota; exact: uu.
by move=> i i_lt; rewrite /normalise now_same ww ?bb.
Qed.

Lemma norm_of_same c n wb : extensional n (norm_of c n wb).
Proof. by move=> u u' uu; apply: normalise_same. Qed.

Lemma each_headE K n norm u : (forall h, extensional K (norm h)) ->
  agree (n * K) id (by_head K norm u) (each_head K (n * K) norm u).
Proof.
move=> normP a a_lt; have h_lt := divn_lt a_lt; have k_lt := modn_lt a_lt.
have K_gt0 := leq_ltn_trans (leq0n _) k_lt.
rewrite /each_head mulnK // nth_mkseq //; apply: normP (k_lt) => k k_lt'.
by rewrite nowE ?flat_lt.
Qed.

Lemma heads_of_same c K n w : extensional (n * K) (heads_of K (n * K) c w).
Proof.
have each norm : (forall h, extensional K (norm h)) ->
    extensional (n * K) (each_head K (n * K) norm).
  move=> normP u u' uu a a_lt; rewrite !each_headE //; apply: normP (modn_lt a_lt) => k k_lt.
  by rewrite uu // flat_lt ?(divn_lt a_lt).
rewrite /heads_of; case: (qk f) => [u u'|||] //.
- by apply: each => h u u' uu; apply: normalise_same.
- by move=> u u' uu; apply: normalise_same.
by apply: each => h u u' uu; apply: normalise_same.
Qed.

Hypothesis opp0 : opp E zero = zero.

Lemma spelled_local c d F k : odflt (lane d) (lanes c) <= lane d ->
  List.Forall (local_maps (spelled c d F k)) (layers (spelled c d F k)).
Proof.
move=> n_le; apply/List.Forall_forall => l /List.in_map_iff[l0 [<- _]].
have pre_same (b : bool) wb : extensional (hid d) (norm_where b c (hid d) wb).
  by case: b => [|u u'] //; apply: norm_of_same.
have out_same (b : bool) wb : extensional (hid d)
    (fun u i => norm_where b c (hid d) wb u i *. res_times c).
  by move=> u u' uu i i_lt; rewrite (pre_same b wb _ _ uu).
split=> //=; try exact: heads_of_same.
move=> t; rewrite /turn_of; case: (theta _) => [base|]; last by split.
exact: partial_rotary_pads.
Qed.

(** MAIN 8 spelled_logits: The decoder that is evaluated in binary64, and compared with
    the clone there, has the logits of the decoder of the theorems, in any arithmetic. *)
Theorem spelled_logits softmax T c d F k tok t v : odflt (lane d) (lanes c) <= lane d ->
  t < T ->
  run softmax T (spelled c d F k) tok t v = logits softmax T (spelled c d F k) tok t v.
Proof. by move=> n_le; apply: run_logits; [apply: spelled_local | apply: norm_of_same]. Qed.

End Spelled.
