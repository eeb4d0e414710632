From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith Insertion Linear Rotary Attention Mlp Decoder.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* Two ways of fitting a decoder: new layers behind every n-th, new tokens.   *)
(*                                                                            *)
(*  behind n k new s == s with new i behind layer i whenever n layers came    *)
(*              since the last new one; k of them came before s.              *)
(*  with_rows m t h b == the decoder m with other rows of embedding, head and *)
(*              head bias.                                                    *)
(******************************************************************************)

Section Behind.
Variables (S : Type) (n : nat) (new : nat -> S).

Fixpoint behind k i (s : seq S) :=
  if s is l :: s' then
    if k.+1 == n then [:: l, new i & behind 0 i.+1 s'] else l :: behind k.+1 i.+1 s'
  else [::].

Hypothesis n_gt0 : 0 < n.

Lemma size_behind k i s : k < n -> size (behind k i s) = size s + (k + size s) %/ n.
Proof.
elim: s k i => [|l s IHs] k i k_lt /=; first by rewrite addn0 divn_small.
have [k_n|k_n] := eqVneq k.+1 n; rewrite /=.
  by rewrite IHs // add0n (addnS k) -(addSn k) k_n divnDl // divnn n_gt0 add1n addnS addSn.
by rewrite IHs; [rewrite !addSn (addnS k) | rewrite ltn_neqAle k_n].
Qed.

Lemma nth_behind l0 k i s j : k < n -> j < size s ->
  nth l0 (behind k i s) (j + (k + j) %/ n) = nth l0 s j.
Proof.
elim: s k i j => [|l s IHs] k i [|j] //= k_lt j_lt.
  by rewrite addn0 divn_small //; case: ifP.
rewrite addSn (addnS k) -(addSn k); have [k_n|k_n] := eqVneq k.+1 n; last first.
  by rewrite /= IHs // ltn_neqAle k_n.
by rewrite k_n divnDl // divnn n_gt0 addnCA add1n /= -{2}(add0n j) IHs.
Qed.

Lemma behind_deeper (Z : Type) (gr : Z -> S -> Prop) (si : S -> Prop) grown k i s :
  (forall l, gr l (grown l)) -> (forall i, si (new i)) ->
  deeper gr si s (behind k i (map grown s)).
Proof.
move=> grP siP; elim: s k i => [|l s IHs] k i /=; first exact: deeper_nil.
by case: ifP => _; apply: deeper_grown => //; apply: deeper_new.
Qed.

End Behind.

(** MAIN 8 layers_every_nth: Putting a new layer behind every n-th of L grown layers
    makes L + L/n layers, in which old layer i is number i + i/n; where the new ones
    are silent, this is a growth in depth that keeps the logits (decoder_logits). *)
Theorem layers_every_nth (S S' : Type) (gr : S -> S' -> Prop) (si : S' -> Prop) n
    (grown : S -> S') (new : nat -> S') s : 0 < n ->
  (forall l, gr l (grown l)) -> (forall i, si (new i)) ->
  let s' := behind n new 0 0 (map grown s) in
  [/\ size s' = size s + size s %/ n,
      forall l0 i, i < size s -> nth l0 s' (i + i %/ n) = nth l0 (map grown s) i
    & deeper gr si s s'].
Proof.
move=> n_gt0 grP siP s'; split=> [|l0 i i_lt|].
- by rewrite size_behind // size_map.
- by rewrite -{1}(add0n (i %/ n)) addnCA -{2}(add0n i) addnCA nth_behind ?size_map.
exact: behind_deeper.
Qed.

Section Vocabulary.
Variables (A : arith) (softmax : seq A -> seq A) (T : nat).
Implicit Types (m : model A).

Definition with_rows m t h b := Model (dm m) (units m) (scale m) (act m) (gated m)
  (parallel m) (times m) t (positions m) (layers m) (nf m) h b (cap m).

(** MAIN 8 vocabulary_rows: In a grown decoder, the rows of embedding, head and head
    bias that belong to new tokens, wherever they lie, may hold anything: the logits
    of old tokens, on old tokens, are those of the old decoder. *)
Theorem vocabulary_rows P V ed hm e ef ev c f m m' (t h : mat A) b :
  model_grown softmax T P V ed hm e ef ev c f m m' ->
  (forall v i, v < V -> i < hid (dm m') -> t (ev v) i = table m' (ev v) i) ->
  (forall v i, v < V -> i < hid (dm m') -> h (ev v) i = lm_head m' (ev v) i) ->
  agree V ev (lm_bias m) b -> forall tok, (forall u, u < T -> tok u < V) ->
  forall u v, u < T -> v < V ->
  logits softmax T (with_rows m' t h b) (fun u => ev (tok u)) u (ev v)
  = logits softmax T m tok u v.
Proof.
move=> mP tP hP bP tok tok_lt u v u_lt v_lt.
apply: (@decoder_logits A softmax T P V ed hm e ef ev c f m (with_rows m' t h b)) => //.
case: mP => hidP headsP laneP unitsP cP cS aP gP pP capP tabP posP layP nfP headP biasP PsP PaP.
split=> //= [w w_lt||w i y w_lt i_lt].
- have [old new] := tabP w w_lt; split=> [i i_lt|j j_lt j_off].
    by rewrite tP ?old //; apply: hidP.1.
  by rewrite tP ?new.
- rewrite -(map_id (layers m)) -(map_id (layers m')).
  apply: (deeper_map (Q := fun=> True)) layP => [l l' _ []|//|]; first by split.
  exact/List.Forall_forall.
by rewrite hP ?headP //; apply: hidP.1.
Qed.

(** MAIN 8 vocabulary_new: A new token whose row of the head is zero has its bias for
    a logit (or zero, where there is none), on whatever text. *)
Theorem vocabulary_new m tok u v : (forall i, i < hid (dm m) -> lm_head m v i = zero) ->
  logits softmax T m tok u v = cap m (lm_bias m v).
Proof.
move=> h0; rewrite /logits /affine /dot osum0 ?add0x // => i i_lt.
by rewrite h0 // mul0x.
Qed.

End Vocabulary.
