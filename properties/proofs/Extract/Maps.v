From mathcomp Require Import all_ssreflect.
From Growproof Require Import AxisMaps.

(******************************************************************************)
(* The index maps that the theorems are about, evaluated. Each row is a tag   *)
(* (0 a head, 1 a key/value axis, 2 a query axis), the sizes G R R' K K', a   *)
(* flag (1: the halves of a head part), and the map, old index by old index.  *)
(* test_proofs.py compares them with growproof.layout.                        *)
(******************************************************************************)

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

Redirect "maps0" Eval vm_compute in [seq row 0 1 1 1 h | h <- heads].
Redirect "maps1" Eval vm_compute in rows_of_groups 1.
Redirect "maps2" Eval vm_compute in rows_of_groups 2.
Redirect "maps3" Eval vm_compute in rows_of_groups 3.
Redirect "maps4" Eval vm_compute in rows_of_groups 4.
