From Coq Require Import ZArith.
From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Linear Rotary Attention Mlp Experts.
From Growproof Require Import Decoder Centred Run Cache.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* The decoder on integers, where nothing is rounded: whole-number stand-ins  *)
(* for what the theorems leave open (softmax, activation, norms, cosines and  *)
(* sines). numbers.py draws models and gives the clone the same stand-ins.    *)
(*                                                                            *)
(*  raw == a layer as lists. A norm is Some (weight, bias); a norm of q or k  *)
(*           has a row for each head, or one row for all heads together. No   *)
(*           experts: one MLP.                                                *)
(*  raw_model == the same for the whole decoder.                              *)
(*  numbers T m tok == its logits, as a table; cached_numbers: token by token,*)
(*           with a cache.                                                    *)
(******************************************************************************)

Local Open Scope Z_scope.
Definition zs := @Arith.Arith Z 0 Z.add Z.mul Z.add_0_r Z.add_0_l Z.mul_0_l Z.mul_0_r.
Definition vector (l : seq Z) : vec zs := fun i => nth 0 l i.
Definition matrix (l : seq (seq Z)) : mat zs := fun i => vector (nth [::] l i).

(* n numbers from -8 to 7, four bits each, the first lowest; and a table of r rows *)
Fixpoint unpack n z : seq Z :=
  if n is k.+1 then (Z.land z 15 - 8) :: unpack k (Z.shiftr z 4) else [::].
Definition unpack2 r n z := seq.reshape (nseq r n) (unpack (r * n) z).

Definition hidden_score := -1000000.
Definition causal (window t t' : nat) (s : zs) : zs :=
  if (t' <= t)%N && (t < t' + window)%N then s else hidden_score.
Definition soft (s : seq zs) : seq zs :=
  let seen := [seq x <- s | ~~ Z.eqb x hidden_score] in
  let total := foldr Z.add 0 seen in
  [seq if Z.eqb x hidden_score then 0 else Z.modulo (x * x + 3 * total) 7 | x <- s].
Definition bend (z : zs) : zs := Z.modulo (z * z + 3 * z) 11.
Definition mixed n (w b x : vec zs) : vec zs :=
  let total := osum n x in fun i => w i * Z.modulo (5 * x i + total) 13 + b i.
Definition normed n (o : option (seq Z * seq Z)) : vec zs -> vec zs :=
  if o is Some (w, b) then mixed n (vector w) (vector b) else id.
Definition head_norm n K (rows : seq (seq Z)) : vec zs -> vec zs :=
  match rows with
  | [::] => id
  | [:: w] => mixed n (vector w) (fun=> 0)
  | _ => by_head K (fun h => mixed K (matrix rows h) (fun=> 0))
  end.

(* the k largest of the weights, the first of equal ones, and 0 for the others *)
Definition largest k (s : seq zs) : seq zs :=
  let x := nth 0 s in let n := size s in
  let before i j := Z.ltb (x i) (x j) || Z.eqb (x i) (x j) && (j < i)%N in
  mkseq (fun i => if (count (before i) (iota 0 n) < k)%N then x i else 0) n.

Record raw := Raw {
  r_n1 : option (seq Z * seq Z); r_p1 : option (seq Z * seq Z);
  r_n2 : option (seq Z * seq Z); r_p2 : option (seq Z * seq Z);
  r_qn : seq (seq Z); r_kn : seq (seq Z); window : nat;
  r_att : seq (seq (seq Z) * seq Z); r_ff : seq (seq (seq Z) * seq Z);
  active : nat; r_router : seq (seq Z); r_experts : seq (seq (seq (seq Z) * seq Z)) }.

Definition weight (l : seq (seq (seq Z) * seq Z)) i := matrix (nth ([::], [::]) l i).1.
Definition bias (l : seq (seq (seq Z) * seq Z)) i := vector (nth ([::], [::]) l i).2.

Record raw_model := RawModel {
  r_dims : dims; r_units : nat; turned : nat; r_gated : bool; r_parallel : bool;
  r_times : Z; r_added : Z; cosines : seq (seq Z); sines : seq (seq Z);
  r_table : seq (seq Z); r_positions : option (seq (seq Z)); r_layers : seq raw;
  r_nf : option (seq Z * seq Z); r_head : seq (seq Z) * seq Z }.

Definition build_mlp f : mlp_weights zs := MlpWeights (weight f 0) (bias f 0)
  (weight f 1) (bias f 1) (weight f 2) (bias f 2).
Definition build_feed l : feed zs := if r_experts l is f :: _ then
    Sparse (@Experts zs (size (r_experts l)) (size (nth ([::], [::]) f 1).1)
      (fun s => largest (active l) (soft [seq (2 * x : zs) | x <- s]))
      (matrix (r_router l)) (fun e => build_mlp (nth [::] (r_experts l) e)))
  else Dense (build_mlp (r_ff l)).

Section Build.
Variable m : raw_model.
Let d := r_dims m. Let D := hid d.

Definition build_layer l : layer zs := Layer
  (normed D (r_n1 l)) (fun y i => r_added m * normed D (r_p1 l) y i)
  (normed D (r_n2 l)) (fun y i => r_added m * normed D (r_p2 l) y i)
  (head_norm (qry d) (lane d) (r_qn l)) (head_norm (kv d) (lane d) (r_kn l))
  (fun t => rotary (A := zs) Z.opp (turned m) (matrix (cosines m) t) (matrix (sines m) t))
  (causal (window l))
  (let a := r_att l in Attn (weight a 0) (bias a 0) (weight a 1) (bias a 1)
    (weight a 2) (bias a 2) (weight a 3) (bias a 3))
  (build_feed l).

Definition build : model zs := Model d (r_units m) id bend (r_gated m) (r_parallel m)
  (Z.mul (r_times m)) (matrix (r_table m)) (omap matrix (r_positions m))
  (map build_layer (r_layers m)) (normed D (r_nf m))
  (matrix (r_head m).1) (vector (r_head m).2) id.

Definition numbers T (tok : seq nat) : seq (seq Z) :=
  let y := run soft T build (nth 0%N tok) in
  mkseq (fun t => mkseq (y t) (size (r_head m).1)) T.

Definition cached_numbers T (tok : seq nat) : seq (seq Z) :=
  mkseq (fun t => mkseq (cached_logits soft build (nth 0%N tok) t) (size (r_head m).1)) T.

Lemma mixed_local n w b : @extensional zs n (mixed n w b).
Proof.
move=> x y xy i i_lt; rewrite /mixed xy //; do 4!congr (_ _ _).
by apply: (@eq_osum zs) => j /xy.
Qed.

Lemma normed_local n o : @extensional zs n (normed n o).
Proof. by case: o => [[w b]|] //=; apply: mixed_local. Qed.

Lemma head_norm_local h rows :
  @extensional zs (h * lane d) (head_norm (h * lane d) (lane d) rows).
Proof.
case: rows => [|w [|w' rows]] //=; first exact: mixed_local.
move=> x y xy a a_lt; apply: mixed_local (modn_lt a_lt) => k k_lt.
by apply: xy; rewrite flat_lt ?(divn_lt a_lt).
Qed.

Lemma scaled_local n a f : @extensional zs n f ->
  @extensional zs n (fun y i => a * f y i : zs).
Proof. by move=> fP x y xy i i_lt; rewrite (fP x y xy). Qed.

Lemma maps_local : (turned m <= lane d)%N ->
  List.Forall (local_maps build) (layers build).
Proof.
move=> n_le; have lP l : local_maps build (build_layer l).
  split; try exact: normed_local; try exact/scaled_local/normed_local;
    try exact: head_norm_local.
  by move=> u; apply: partial_rotary_pads.
by rewrite /=; elim: (r_layers m) => [|l s IHs]; constructor.
Qed.

(** MAIN 8 numbers_logits: What is compared with the clone's integers is the logits
    of the decoder of the theorems. *)
Theorem numbers_logits T tok t v : (turned m <= lane d)%N -> (t < T)%N ->
  (v < size (r_head m).1)%N ->
  nth 0 (nth [::] (numbers T tok) t) v = logits soft T build (nth 0%N tok) t v.
Proof.
move=> n_le t_lt v_lt; rewrite /numbers nth_mkseq // nth_mkseq //.
refine (@run_logits zs soft T build _ t v (maps_local n_le) _ t_lt).
exact: normed_local.
Qed.

Lemma soft_hides : @hides zs soft hidden_score.
Proof.
move=> s n _; rewrite /soft size_map; split=> //; rewrite filter_cat filter_nseq.
by rewrite Z.eqb_refl cats0 map_cat map_nseq Z.eqb_refl.
Qed.

(** MAIN 8 cached_numbers_logits: What is compared with the integers of transformers'
    own decoding with a cache is the logits of the decoder of the theorems. *)
Theorem cached_numbers_logits T tok t v : (turned m <= lane d)%N -> (t < T)%N ->
  (v < size (r_head m).1)%N ->
  nth 0 (nth [::] (cached_numbers T tok) t) v = logits soft T build (nth 0%N tok) t v.
Proof.
move=> n_le t_lt v_lt; rewrite /cached_numbers nth_mkseq // nth_mkseq //.
apply: (cache_whole soft_hides) t_lt; split; [exact: maps_local | exact: normed_local |].
rewrite /=; elim: (r_layers m) => [|l s IHs]; constructor=> // t0 t' z t0_lt.
by rewrite /= /causal leqNgt t0_lt.
Qed.

End Build.
