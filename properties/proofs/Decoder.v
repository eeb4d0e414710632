From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Mlp Experts.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* The normal form: one decoder of which every family is a value.             *)
(*                                                                            *)
(*  layer == maps before (n1, n2) and after (p1, p2) attention and MLP: a norm*)
(*           where there is one, id where there is none, a residual multiplier*)
(*           in p1 and p2; norms of q and k; rotary and mask of this layer;   *)
(*           the weights, of one MLP or of experts.                           *)
(*  model == the sizes, the score scale, activation and gating, parallel or   *)
(*           sequential residual; embedding, its multiplier, positions;       *)
(*           layers, last norm, lm_head, its bias, and what becomes of logits.*)
(*           Parallel with one norm: n2 is n1.                                *)
(*  residual m tok == the stream of T tokens tok after the last layer.        *)
(*    logits m tok == lm_head of the last norm of it.                         *)
(*        silent_layer == it adds zero to every lane of every stream.         *)
(*  deeper gr si s s' == s' is s with each layer grown (gr), and with any     *)
(*           number of new layers (si) put anywhere.                          *)
(*  model_grown P == m' is a growth of m; P holds of every stream of m, and   *)
(*           the norms have to commute with padding on such streams only. The *)
(*           head may take back a factor f that the last norm leaves.         *)
(******************************************************************************)

Record layer (A : arith) := Layer {
  n1 : vec A -> vec A; p1 : vec A -> vec A; n2 : vec A -> vec A; p2 : vec A -> vec A;
  qn : vec A -> vec A; kn : vec A -> vec A; rot : nat -> vec A -> vec A;
  mask : nat -> nat -> A -> A; att : attn A; ff : feed A }.

Record model (A : arith) := Model {
  dm : dims; units : nat; scale : A -> A; act : A -> A; gated : bool; parallel : bool;
  times : A -> A; table : mat A; positions : option (mat A); layers : seq (layer A);
  nf : vec A -> vec A; lm_head : mat A; lm_bias : vec A; cap : A -> A }.

Inductive deeper (S S' : Type) (gr : S -> S' -> Prop) (si : S' -> Prop) :
    seq S -> seq S' -> Prop :=
| deeper_nil : deeper gr si [::] [::]
| deeper_grown l l' s s' : gr l l' -> deeper gr si s s' ->
  deeper gr si (l :: s) (l' :: s')
| deeper_new l' s s' : si l' -> deeper gr si s s' -> deeper gr si s (l' :: s').

Lemma deeper_map (S S' Z Z' : Type) (f : Z -> S) (f' : Z' -> S') (Q : Z -> Prop)
    (gr : S -> S' -> Prop) (gr0 : Z -> Z' -> Prop) (si : S' -> Prop) (si0 : Z' -> Prop) s s' :
  (forall l l', Q l -> gr0 l l' -> gr (f l) (f' l')) ->
  (forall l', si0 l' -> si (f' l')) ->
  List.Forall Q s -> deeper gr0 si0 s s' -> deeper gr si (map f s) (map f' s').
Proof.
move=> grf sif + ds; elim: ds => {s s'} [_|l l' s s' l_gr _ IHs|l' s s' l_si _ IHs sQ].
- exact: deeper_nil.
- by case/List.Forall_cons_iff => lQ sQ; apply: deeper_grown (IHs sQ); apply: grf.
exact: deeper_new (sif _ l_si) (IHs sQ).
Qed.

Section Decoder.
Variables (A : arith) (softmax : seq A -> seq A) (T : nat).
Implicit Types (m : model A) (l : layer A).

Definition att_out m l := attention softmax (mask l) T (dm m) (rot l) (scale m)
  (qn l) (kn l) (att l).
Definition ff_out m l : vec A -> vec A := match ff l with
  | Dense p => mlp (gated m) (act m) (hid (dm m)) (units m) p
  | Sparse s => sparse (gated m) (act m) (hid (dm m)) s
  end.

Definition block m (x : mat A) l : mat A :=
  let a t i := x t i +. p1 l (att_out m l (fun t => n1 l (x t)) t) i in
  fun t i => a t i +. p2 l (ff_out m l (n2 l (if parallel m then x t else a t))) i.

Definition embedded m t v : vec A := fun i =>
  let: x := times m (table m v i) in if positions m is Some q then x +. q t i else x.
Definition start m (tok : nat -> nat) : mat A := fun t => embedded m t (tok t).
Definition residual m tok : mat A := foldl (block m) (start m tok) (layers m).
Definition logits m tok : mat A := fun t v =>
  cap m (affine (hid (dm m)) (lm_head m) (lm_bias m) (nf m (residual m tok t)) v).

Definition silent_layer m l :=
  (forall x t i, i < hid (dm m) -> p1 l (att_out m l x t) i = zero)
  /\ (forall x i, i < hid (dm m) -> p2 l (ff_out m l x) i = zero).

Definition zero_down m (p : mlp_weights A) :=
  (forall i u, i < hid (dm m) -> wd p i u = zero)
  /\ (forall i, i < hid (dm m) -> bd p i = zero).

(** Writers that are zero make a layer silent, if what follows them keeps zero. *)
Lemma silent_writers m l :
  (forall y, (forall i, i < hid (dm m) -> y i = zero) ->
    forall i, i < hid (dm m) -> p1 l y i = zero /\ p2 l y i = zero) ->
  [/\ forall i a, i < hid (dm m) -> wo (att l) i a = zero,
      forall i, i < hid (dm m) -> bo (att l) i = zero
    & match ff l with
      | Dense p => zero_down m p
      | Sparse s => forall e, e < many s -> zero_down m (expert s e)
      end] -> silent_layer m l.
Proof.
move=> pP [wo0 bo0 ff0]; split=> [x t|x] i i_lt.
  apply: (proj1 (pP _ _ i i_lt)) => j j_lt; rewrite /att_out /attention /affine bo0 //.
  by rewrite addx0 /dot osum0 // => a _; rewrite wo0 ?mul0x.
have mlp0 F p j : j < hid (dm m) -> zero_down m p ->
    mlp (gated m) (act m) (hid (dm m)) F p x j = zero.
  move=> j_lt [wd0 bd0]; rewrite /mlp /affine bd0 // addx0 /dot osum0 // => a _.
  by rewrite wd0 ?mul0x.
apply: (proj2 (pP _ _ i i_lt)) => j j_lt; rewrite /ff_out; move: ff0.
case: (ff l) => [p|s] ff0; first exact: mlp0.
by rewrite /sparse; apply: osum0 => e e_lt; rewrite mlp0 ?mul0x //; apply: ff0.
Qed.

Lemma silent_block m l x t i : silent_layer m l -> i < hid (dm m) ->
  block m x l t i = x t i.
Proof. by case=> a0 f0 i_lt; rewrite /block a0 // f0 // !addx0. Qed.

Section Grown.
Variables (P : vec A -> Prop) (V : nat) (ed hm e ef ev : nat -> nat) (c f : A -> A).
Variables (m m' : model A).
Let d := dm m. Let d' := dm m'.

Definition norm_grown (n n' : vec A -> vec A) := forall x x',
  P x -> padded (hid d) (hid d') ed x x' -> padded (hid d) (hid d') ed (n x) (n' x').
Definition pads (p p' : vec A -> vec A) := forall x x',
  padded (hid d) (hid d') ed x x' -> padded (hid d) (hid d') ed (p x) (p' x').

Record layer_grown l l' := LayerGrown {
  n1_grown : norm_grown (n1 l) (n1 l');
  n2_grown : norm_grown (n2 l) (n2 l');
  p1_grown : pads (p1 l) (p1 l');
  p2_grown : pads (p2 l) (p2 l');
  rot_grown : forall t, respects (lane d) (lane d') e (rot l t) (rot l' t);
  rot_c : forall t u k, rot l t (fun k => c (u k)) k = c (rot l t u k);
  mask_same : mask l' = mask l;
  att_grown : attn_grown d d' ed hm e c (qn l) (qn l') (kn l) (kn l') (att l) (att l');
  ff_grown : match ff l, ff l' with
    | Dense p, Dense p' =>
      mlp_free (gated m) (act m) (hid d) (hid d') (units m) (units m') ed ef p p'
    | Sparse s, Sparse s' =>
      exists ee, experts_free (gated m) (act m) (hid d) (hid d') ed ee s s'
    | _, _ => False end;
  att_P : forall x t, P (p1 l (att_out m l x t));
  ff_P : forall x, P (p2 l (ff_out m l x)) }.

Record model_grown := ModelGrown {
  hidP : emb (hid d) (hid d') ed; headsP : emb (hds d) (hds d') hm;
  laneP : emb (lane d) (lane d') e; unitsP : emb (units m) (units m') ef;
  c_exact : homothety c; c_scale : forall s, scale m' (c s) = scale m s;
  act_same : act m' = act m; gated_same : gated m' = gated m;
  parallel_same : parallel m' = parallel m; cap_same : cap m' = cap m;
  table_grown : forall v, v < V -> padded (hid d) (hid d') ed
    (fun i => times m (table m v i)) (fun i => times m' (table m' (ev v) i));
  positions_grown : match positions m, positions m' with
    | Some q, Some q' => forall t, t < T -> padded (hid d) (hid d') ed (q t) (q' t)
    | None, None => True | _, _ => False end;
  layers_grown : deeper layer_grown (silent_layer m') (layers m) (layers m');
  nf_grown : norm_grown (fun x i => f (nf m x i)) (nf m');
  head_old : forall v i y, v < V -> i < hid d ->
    lm_head m' (ev v) (ed i) *. f y = lm_head m v i *. y;
  bias_old : agree V ev (lm_bias m) (lm_bias m');
  P_start : forall t v, v < V -> P (embedded m t v);
  P_add : forall x y, P x -> P y -> P (fun i => x i +. y i) }.

Hypothesis mP : model_grown.

Lemma padded_add (x x' y y' : vec A) :
  padded (hid d) (hid d') ed x x' -> padded (hid d) (hid d') ed y y' ->
  padded (hid d) (hid d') ed (fun i => x i +. y i) (fun i => x' i +. y' i).
Proof.
move=> [xx x0] [yy y0]; split=> [i i_lt|j j_lt j_off]; first by rewrite xx ?yy.
by rewrite x0 // y0 // addx0.
Qed.

Definition streams (x x' : mat A) := forall t, t < T ->
  P (x t) /\ padded (hid d) (hid d') ed (x t) (x' t).

Lemma block_grown l l' x x' :
  layer_grown l l' -> streams x x' -> streams (block m x l) (block m' x' l').
Proof.
move=> lP xP t t_lt; have [Px xx] := xP t t_lt.
have aa : padded (hid d) (hid d') ed (att_out m l (fun t => n1 l (x t)) t)
                                     (att_out m' l' (fun t => n1 l' (x' t)) t).
  rewrite /att_out (mask_same lP).
  apply: (attention_grown softmax (mask l) (hidP mP) (headsP mP) (laneP mP)
    (rot_grown lP) (c_exact mP) (c_scale mP) (rot_c lP) (att_grown lP)) => // t' t'_lt.
  by have [Px' xx'] := xP t' t'_lt; apply: (n1_grown lP).
have pa := padded_add xx (p1_grown lP aa).
have Pa := P_add mP Px (att_P lP (fun t => n1 l (x t)) t).
split; first by apply: (P_add mP) => //; apply: (ff_P lP).
apply: (padded_add pa); apply: (p2_grown lP); rewrite /ff_out (act_same mP)
  (gated_same mP) (parallel_same mP).
set y := n2 l _; set y' := n2 l' _; have yP : padded (hid d) (hid d') ed y y'.
  rewrite /y /y'; case: ifP => _; first exact: (n2_grown lP Px xx).
  exact: (n2_grown lP Pa pa).
move: (ff_grown lP); case: (ff l) (ff l') => [p|s] [p'|s'] // => [pP|[ee sP]].
  exact: (mlp_grown (hidP mP) (unitsP mP) pP yP).
exact: (experts_grown (hidP mP) sP yP).
Qed.

Lemma layers_streams s s' x x' : deeper layer_grown (silent_layer m') s s' ->
  streams x x' -> streams (foldl (block m) x s) (foldl (block m') x' s').
Proof.
move=> ds; elim: ds x x' => {s s'} [//|l l' s s' lP _ IHs|l' s s' l'_silent _ IHs].
  by move=> x x' xP; apply/IHs/block_grown.
move=> x x' xP.
apply: IHs => t t_lt; have [Px [xx x0]] := xP t t_lt; split=> //.
split=> [i i_lt|j j_lt j_off]; rewrite silent_block ?xx ?x0 //.
exact: (hidP mP).1.
Qed.

Variable tok : nat -> nat.
Hypothesis tok_lt : forall t, t < T -> tok t < V.
Let tok' t := ev (tok t).

Lemma start_streams : streams (start m tok) (start m' tok').
Proof.
move=> t t_lt; split; first exact/(P_start mP)/tok_lt.
have := table_grown mP (tok_lt t_lt); have := positions_grown mP.
rewrite /start /embedded /tok'; case: (positions m) (positions m') => [q|] [q'|] // qP.
by move/padded_add; apply; apply: qP.
Qed.

(** MAIN 8 decoder_padded: After the last layer of a grown decoder of the normal
    form, with any number of silent layers added anywhere, the residual is the
    old one, padded. *)
Theorem decoder_padded t : t < T ->
  padded (hid d) (hid d') ed (residual m tok t) (residual m' tok' t).
Proof.
by move/(layers_streams (layers_grown mP) start_streams) => -[].
Qed.

(** MAIN 8 decoder_logits: A grown decoder of the normal form (norms before, after
    or around a block, sequential or parallel, gated or plain, with norms of q and
    k, multipliers, biases, positions, windows, repeated or dealt key/value heads,
    experts),
    with any number of silent layers added anywhere, has the logits of the old
    one. *)
Theorem decoder_logits t v : t < T -> v < V ->
  logits m' tok' t (ev v) = logits m tok t v.
Proof.
move=> t_lt v_lt; have [Px xx] := layers_streams (layers_grown mP) start_streams t_lt.
have [nn n0] := nf_grown mP Px xx; rewrite /logits (cap_same mP) /affine (bias_old mP) //.
congr (cap m (_ +. _)); apply: (@osum_insert A _ _ ed) (hidP mP) _.
split=> [i i_lt|j j_lt j_off]; first by rewrite nn ?(head_old mP).
by rewrite n0 ?mulx0.
Qed.

End Grown.
End Decoder.
