From Coq Require Import Ascii String.
From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import AxisMaps Dealt Fitting.

(******************************************************************************)
(* The index maps that the theorems are about, evaluated. Each row is a tag   *)
(* (0 a head, 1 a key/value axis, 2 a query axis), the sizes G R R' K K', a   *)
(* flag (1: the halves of a head part), and the map, old index by old index.  *)
(* test_proofs.py compares them with growproof.table.                         *)
(*                                                                            *)
(* packed row == a row as a string, which Coq prints in no time: each entry   *)
(*            two digits of base 32, from @ on.                               *)
(******************************************************************************)

Definition digit n := String (ascii_of_nat (n + 64)).
Definition packed := foldr (fun n s => digit (n %/ 32) (digit (n %% 32) s)) EmptyString.

Definition lane_map K K' split := if split then splitmap K K' else id.

Definition lanes := [seq (K, K') | K <- iota 1 8, K' <- iota K (11 - K)].
Definition both_even (l : nat * nat) := ~~ odd l.1 && ~~ odd l.2.
Definition heads := [seq (l, false) | l <- lanes]
  ++ [seq (l, true) | l <- lanes & both_even l].
Definition repeats := [seq (R, R') | R <- iota 1 3, R' <- iota R (5 - R)].

Definition row tag G R R' (h : nat * nat * bool) :=
  let: (K, K', split) := h in let e := lane_map K K' split in
  [:: tag; G; R; R'; K; K'; split : nat] ++
  match tag with
  | 0 => [seq e k | k <- iota 0 K]
  | 1 => [seq kvmap K K' e a | a <- iota 0 (G * K)]
  | _ => [seq qmap R K R' K' e a | a <- iota 0 (G * R * K)]
  end.

Definition rows_of_groups G := [seq row 1 G 1 1 h | h <- heads]
  ++ [seq row 2 G r.1 r.2 h | r <- repeats, h <- heads].

Redirect "maps0" Eval vm_compute in map packed [seq row 0 1 1 1 h | h <- heads].
Redirect "maps1" Eval vm_compute in map packed (rows_of_groups 1).
Redirect "maps2" Eval vm_compute in map packed (rows_of_groups 2).
Redirect "maps3" Eval vm_compute in map packed (rows_of_groups 3).
Redirect "maps4" Eval vm_compute in map packed (rows_of_groups 4).

(* The ways of fitting a model to hardware: a tag, four sizes, and the map.     *)
(*   0 query heads, R of G groups dealt out over m copies with room for R'.     *)
(*   1 n blocks of b neurons, each grown to b'.                                 *)
(*   2 L layers, a new one behind every n-th: where each old one is found.      *)
(*   3 lanes of a head of K, each the first of m.                               *)
Definition pairs := [seq (a, b) | a <- iota 1 4, b <- iota 1 4].
Definition dealt (G R R' m : nat) := [:: 0; G; R; R'; m]
  ++ [seq dealmap R R' m ((R + m.-1) %/ m) h | h <- iota 0 (G * R)].
Definition spread (n b b' : nat) := [:: 1; n; b; b'; 0]
  ++ [seq spreadmap b b' i | i <- iota 0 (n * b)].
Definition every (n L : nat) := let found := behind n (fun=> 0) 0 0 (iota 1 L) in
  [:: 2; n; L; 0; 0] ++ [seq index i found | i <- iota 1 L].
Definition between (m K : nat) := [:: 3; m; K; 0; 0] ++ [seq m * k | k <- iota 0 K].

Redirect "ways" Eval vm_compute in map packed (
  [seq dealt s.1 s.2 p.1 p.2 | s <- [seq (G, R) | G <- iota 1 3, R <- iota 1 7], p <- pairs]
  ++ [seq spread n p.1 (p.1 + p.2) | n <- iota 1 4, p <- pairs]
  ++ [seq every n L | n <- iota 1 5, L <- iota 1 12]
  ++ [seq between m (2 * k) | m <- iota 2 3, k <- iota 1 4]).
