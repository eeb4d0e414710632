From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Insertion Linear Mlp.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*     experts == many MLPs of width units each, a row of the router for each*)
(*                of them, and the route: any map of the row of the router's  *)
(*                outputs to the row of the experts' weights, as the largest k*)
(*                of their softmax.                                           *)
(*  sparse g f D s x == the sum of what the experts make of x, each times its *)
(*                weight.                                                     *)
(*  experts_free == s' is s, its router and its MLPs grown; no expert is new. *)
(*  experts_scattered == the same with zeros in all new places.               *)
(*        feed == what is behind the attention of a layer: one MLP or experts.*)
(******************************************************************************)

Record experts (A : arith) := Experts {
  many : nat; width : nat; route : seq A -> seq A; wr : mat A;
  expert : nat -> mlp_weights A }.

Inductive feed (A : arith) := Dense of mlp_weights A | Sparse of experts A.

Section Experts.
Variables (A : arith) (gated : bool) (f : A -> A).
Implicit Types s : experts A.

Definition chosen D s x : vec A :=
  nth zero (route s (mkseq (fun e => dot D (wr s e) x) (many s))).
Definition sparse D s x : vec A := let c := chosen D s x in fun i =>
  dot (many s) (fun e => mlp gated f D (width s) (expert s e) x i) c.

Variables (D D' : nat) (ed ef : nat -> nat).
Hypothesis edP : emb D D' ed.

Record experts_free s s' := ExpertsFree {
  many_same : many s' = many s; route_same : route s' = route s;
  width_emb : emb (width s) (width s') ef;
  router_old : agree2 (many s) D id ed (wr s) (wr s');
  expert_free : forall e, e < many s ->
    mlp_free gated f D D' (width s) (width s') ed ef (expert s e) (expert s' e) }.

Lemma experts_grown s s' x x' : experts_free s s' -> padded D D' ed x x' ->
  padded D D' ed (sparse D s x) (sparse D' s' x').
Proof.
move=> sP xP; have each e : e < many s -> padded D D' ed
    (mlp gated f D (width s) (expert s e) x) (mlp gated f D' (width s') (expert s' e) x').
  by move=> e_lt; apply: (mlp_grown edP (width_emb sP) (expert_free sP e_lt) xP).
have same : chosen D' s' x' = chosen D s x.
  rewrite /chosen (many_same sP) (route_same sP); congr (nth _ (route s _)).
  apply/eq_in_map => e; rewrite mem_iota => e_lt.
  apply: (zero_insertion edP) xP.1 _ => [i i_lt|j j_lt j_off].
    exact: (router_old sP).
  by right; apply: xP.2.
rewrite /sparse same (many_same sP); split=> [i i_lt|j j_lt j_off].
  by apply: eq_osum => e e_lt; rewrite (each e e_lt).1.
by apply: osum0 => e e_lt; rewrite (each e e_lt).2 ?mul0x.
Qed.

Record experts_scattered s s' := ExpertsScattered {
  many_kept : many s' = many s; route_kept : route s' = route s;
  width_at : emb (width s) (width s') ef;
  router_at : scattered (many s) (many s) D D' id ed (wr s) (wr s');
  expert_at : forall e, e < many s ->
    mlp_scattered D D' (width s) (width s') ed ef (expert s e) (expert s' e) }.

Lemma experts_scattered_free s s' : experts_scattered s s' -> experts_free s s'.
Proof.
by case=> cP rP wP [rt _] eP; split=> // e /eP; apply: mlp_scattered_free.
Qed.

(** MAIN 5 experts_padded: A sparse MLP whose router and experts are scattered along
    the residual and the experts' units maps padded hidden states to padded hidden
    states, with the same experts chosen and the same weights, for any choice that
    looks at the router's outputs. *)
Theorem experts_padded s s' x x' : experts_scattered s s' -> padded D D' ed x x' ->
  padded D D' ed (sparse D s x) (sparse D' s' x').
Proof. by move/experts_scattered_free; apply: experts_grown. Qed.

Lemma sparse_same s (x y : vec A) : (forall i, i < D -> x i = y i) ->
  sparse D s x =1 sparse D s y.
Proof.
move=> xy i; have aff W b o : affine D W b x o = affine D W b y o.
  by congr (_ +. _); apply: eq_osum => j /xy->.
rewrite /sparse; have -> : chosen D s x = chosen D s y.
  congr (nth _ (route s _)); apply/eq_in_map => e _.
  by apply: eq_osum => j /xy->.
apply: eq_osum => e _; congr (_ *. _); congr (_ +. _); apply: eq_osum => u _.
by rewrite /hidden !aff.
Qed.

End Experts.
