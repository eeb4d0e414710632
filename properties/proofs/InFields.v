From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Mlp Experts RmsNorm LayerNorm QkNorm Decoder Centred.
From Growproof Require Import Families Cache Spelled.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(* Over a field the spelled decoder (Spelled.v) is that of Families.v.        *)
(*                                                                            *)
(*  in_field R exp == what a real closed field has, with any exponential.     *)
(******************************************************************************)

Definition in_field (R : rcfType) (exp : R -> R) : functions (ring_arith R) :=
  @Functions (ring_arith R) -%R (fun x y => x / y) Num.sqrt (fun n => n%:R) exp
    (fun x y => x < y).

Section Free.
Variables (A : arith) (g : bool) (a : A -> A).

Lemma mlp_free_refl D F p : mlp_free g a D D F F id id p p.
Proof.
have no n j (P : Prop) : (j < n)%N -> ~~ img n id j -> P by rewrite img_id => ->.
split=> // [i lt||u lt]; [exact: no lt | exact: padded_same | exact: no lt].
Qed.

Lemma experts_free_refl D s : experts_free g a D D id id s s.
Proof. by split=> // e _; apply: mlp_free_refl. Qed.

End Free.

Section InField.
Variables (R : rcfType) (exp : R -> R) (power : R -> R -> R) (f : family).
Let A := ring_arith R.
Let E := in_field exp.
Let speed (base : R) n k := power base (- (2 * k)%:R / n%:R).
Implicit Types (u w b : nat -> R) (c : config R).

Lemma normaliseE (layer : bool) size e n w b u i : (i < n)%N ->
  normalise E layer size e n w b u i
  = masked_norm (A := A) (fun x y => x - y) (fun x => x / size%:R)
      (fun q x => x / Num.sqrt (q / size%:R + e)) n
      (fun i => (layer && (i < size)%N)%:R) w b u i.
Proof.
move=> i_lt; rewrite /normalise /masked_norm.
have nowU : @osum A n (@now A n u) = @osum A n u.
  by apply: eq_osum => j /nowE.
set c := now _ _; pose c' i := u i - @osum A n u / size%:R
  * (layer && (i < size)%N)%:R; have cE j : (j < n)%N -> c j = c' j.
  by move=> j_lt; rewrite /c !nowE // nowU /c' /minus /=; case: ifP.
rewrite (@eq_osum A n (fun i => c i * c i) (fun i => c' i * c' i)); last first.
  by move=> j j_lt; rewrite cE.
by rewrite cE //= /unit /= div1r mulrC.
Qed.

Lemma normalise_rms size e n w u i : size = n -> (i < n)%N ->
  normalise E false size e n w (fun=> 0) u i = rms n e w u i.
Proof.
move=> -> i_lt; rewrite normaliseE // /masked_norm /rms /meansq /= addr0 mulr0 subr0.
rewrite [X in Num.sqrt (X / _ + _)](_ : _ = rsum n (fun j => u j ^+ 2)) //.
by apply: eq_rsum => j _; rewrite subr0 expr2.
Qed.

Lemma normalise_ln size e n w b u i : size = n -> (i < n)%N ->
  normalise E true size e n w b u i = ln n e w b u i.
Proof.
move=> -> i_lt; rewrite normaliseE // /masked_norm /ln /rms /meansq /= i_lt mulr1.
rewrite [X in Num.sqrt (X / _ + _)](_ : _ = rsum n (fun j => centre n u j ^+ 2)) //.
by apply: eq_rsum => j j_lt; rewrite j_lt mulr1 expr2.
Qed.

Lemma weight_ofE w i : weight_of E f w i = one R f + w i.
Proof. by rewrite /weight_of /one /unit /=; case: ifP => _; rewrite ?add0r. Qed.

Lemma norm_ofE c n wb u i : (i < n)%N -> norm_of E f c n wb u i = norm f c n wb u i.
Proof.
move=> i_lt; rewrite /norm_of /norm; case: norm_size => [m|]; last first.
  case: (is_layer f); first by rewrite normalise_ln // /ln /rms weight_ofE.
  by rewrite normalise_rms // /rms weight_ofE.
by rewrite normaliseE // /masked_norm weight_ofE.
Qed.

Lemma heads_ofE c K n w u a : (a < n * K)%N ->
  heads_of E f K (n * K) c w u a = normed_qk f K (n * K) (eps c) w u a.
Proof.
move=> a_lt; have k_lt := modn_lt a_lt; rewrite /heads_of /normed_qk.
case: (qk f) => //.
- rewrite [LHS]each_headE //; last by move=> h v v' vv; apply: normalise_same.
  by rewrite /by_head normalise_rms // /rms weight_ofE.
- by rewrite normalise_rms // /rms weight_ofE.
rewrite [LHS]each_headE //; last by move=> h v v' vv; apply: normalise_same.
by rewrite /by_head normalise_ln // /ln /rms weight_ofE.
Qed.

Variables (d : dims) (F T V : nat) (c : config R) (softmax : seq A -> seq A).
Hypothesis lanesP : lanes_in c (lane d).
Variable k : weights A.
Let m := decoder power f c d F k.
Let m' := spelled E speed f c d F k.

Lemma norms_grown (b : bool) wb : norm_grown xpredT id m m'
  (norm_if f b c (hid d) wb) (norm_where E f b c (hid d) wb).
Proof.
move=> x x' _ xP; apply: padded_same => i i_lt; rewrite /norm_where /norm_if.
case: b; last exact: xP.1.
by rewrite [LHS](@norm_of_same A E f c _ wb _ _ xP.1) // norm_ofE.
Qed.

Lemma heads_grown n w (x x' : vec A) : padded (n * lane d) (n * lane d) id x x' ->
  same (n * lane d) (normed_qk f (lane d) (n * lane d) (eps c) w x)
                    (heads_of E f (lane d) (n * lane d) c w x').
Proof. by move=> [xx _] a a_lt; rewrite [LHS](@heads_of_same A E f c _ _ w _ _ xx) // heads_ofE. Qed.

Lemma affine_padded n (W : mat A) (b x x' : vec A) : padded (hid d) (hid d) id x x' ->
  padded n n id (affine (hid d) W b x) (affine (hid d) W b x').
Proof. by move=> [xx _]; apply: padded_same => o _; rewrite (affine_same W b xx). Qed.

Lemma attention_spelled (l : params A) : @attn_grown A d d id id id id
  (normed_qk f (lane d) (qry d) (eps c) (q_norm l)) (heads_of E f (lane d) (qry d) c (q_norm l))
  (normed_qk f (lane d) (kv d) (eps c) (k_norm l)) (heads_of E f (lane d) (kv d) c (k_norm l))
  (attw l) (attw l).
Proof.
have no n j (P : Prop) : (j < n)%N -> ~~ img n id j -> P by rewrite img_id => ->.
split=> [x x' xP h h_lt|x x' xP h h_lt i i_lt|x x' xP h h_lt i i_lt|o a|i lt||a a_lt].
- split=> [i i_lt|i lt]; last exact: no lt.
  by apply: (heads_grown _ (affine_padded (qry d) _ _ xP)); rewrite flat_lt.
- by apply: (heads_grown _ (affine_padded (kv d) _ _ xP)); rewrite flat_lt ?divn_lt.
- by apply: (affine_padded (kv d) _ _ xP).1; rewrite flat_lt ?divn_lt.
- by rewrite prodmap_id.
- exact: no lt.
- exact: padded_same.
by case/imgP; exists a; rewrite ?prodmap_id.
Qed.

Lemma spelled_grown : model_grown softmax T xpredT V id id id id id id id m m'.
Proof.
have idP n := emb_id (leqnn n).
have refl n (x : vec A) : padded n n id x x by apply: padded_same.
split=> //=.
- by move=> s; rewrite /scaled; case: (score c) => [a|]; [rewrite mulrC | rewrite div1r].
- move=> v _; apply: padded_same => i _; rewrite /embed_times.
  by case: root_embedding; rewrite ?mul1r ?mulrA.
- by case: (wpe k).
- elim: (blocks k) => [|l s IHs]; first exact: deeper_nil.
  apply: deeper_grown IHs; split=> //=; try exact: norms_grown.
  + move=> x x' xP; apply: padded_same => i i_lt.
    by rewrite ((norms_grown (post f) (out1 l) isT xP).1 i i_lt).
  + move=> x x' xP; apply: padded_same => i i_lt.
    by rewrite ((norms_grown (post f) (out2 l) isT xP).1 i i_lt).
  + move=> t; rewrite /turn /turn_of; case: (theta _) => [base|]; last by split.
    by apply: partial_rotary_pads => //; exact: oppr0.
  + exact: attention_spelled.
  + by case: (ffw l) => [p|s']; [apply: mlp_free_refl | exists id; apply: experts_free_refl].
exact: (norms_grown true).
Qed.

(** MAIN 8 spelled_in_fields: Over a real closed field the decoder that is evaluated in
    binary64, spelled as the clone spells it, has the logits of the decoder of the
    families' theorems. *)
Theorem spelled_in_fields tok t v : (forall t, (t < T)%N -> (tok t < V)%N) ->
  (t < T)%N -> (v < V)%N ->
  logits softmax T (spelled E speed f c d F k) tok t v
  = logits softmax T (decoder power f c d F k) tok t v.
Proof. by move=> tok_lt t_lt v_lt; apply: (decoder_logits spelled_grown tok_lt). Qed.

End InField.
