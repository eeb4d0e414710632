From mathcomp Require Import all_ssreflect.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention Mlp.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*  layer == two norms (any maps of a vector), attention and MLP weights.     *)
(*  model == the sizes, the position map, the score scale, the activation,    *)
(*           parallel or sequential residual, embedding, layers, last norm,   *)
(*           lm_head.                                                         *)
(*  residual m tok == the stream of T tokens tok after the last layer.        *)
(*    logits m tok == lm_head of the last norm of it.                         *)
(*        silent_layer == its writers (o_proj, down_proj, biases) are zero.   *)
(*  deeper gr si s s' == s' is s with each layer grown (gr), and with any     *)
(*           number of new layers (si) put anywhere.                          *)
(*  model_grown P == m' is a growth of m; P holds of every stream of m, and   *)
(*           the norms have to commute with padding on such streams only.     *)
(******************************************************************************)

Record layer (A : arith) := Layer {
  n1 : vec A -> vec A; n2 : vec A -> vec A; att : attn A; ff : mlp_weights A }.

Record model (A : arith) := Model {
  dm : dims; units : nat; rot : nat -> vec A -> vec A; scale : A -> A;
  act : A -> A; parallel : bool;
  table : mat A; layers : seq (layer A); nf : vec A -> vec A; lm_head : mat A }.

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
Variables (A : arith) (softmax : seq A -> seq A).
Variables (mask : nat -> nat -> A -> A) (T : nat).
Implicit Types (m : model A) (l : layer A).

Definition att_out m l := attention softmax mask T (dm m) (rot m) (scale m) (att l).
Definition ff_out m l := mlp (act m) (hid (dm m)) (units m) (ff l).

Definition block m (x : mat A) l : mat A :=
  let a t i := x t i +. att_out m l (fun t => n1 l (x t)) t i in
  fun t i => a t i +. ff_out m l (if parallel m then n1 l (x t) else n2 l (a t)) i.

Definition residual m (tok : nat -> nat) : mat A :=
  foldl (block m) (fun t => table m (tok t)) (layers m).
Definition logits m tok : mat A := fun t v =>
  dot (hid (dm m)) (lm_head m v) (nf m (residual m tok t)).

Definition silent_layer m l :=
  [/\ forall i a, i < hid (dm m) -> wo (att l) i a = zero,
      forall i, i < hid (dm m) -> bo (att l) i = zero,
      forall i u, i < hid (dm m) -> wd (ff l) i u = zero
    & forall i, i < hid (dm m) -> bd (ff l) i = zero].

Lemma silent_block m l x t i : silent_layer m l -> i < hid (dm m) ->
  block m x l t i = x t i.
Proof.
case=> wo0 bo0 wd0 bd0 i_lt.
rewrite /block /att_out /ff_out /mlp /attention /affine /dot.
rewrite bo0 // bd0 // !addx0 !osum0 ?addx0 // => a _.
  by rewrite wd0 ?mul0x.
by rewrite wo0 ?mul0x.
Qed.

Section Grown.
Variables (P : vec A -> Prop) (V : nat) (ed e ef ev : nat -> nat) (c : A -> A).
Variables (m m' : model A).
Let d := dm m. Let d' := dm m'.

Definition norm_grown (n n' : vec A -> vec A) := forall x x',
  P x -> padded (hid d) (hid d') ed x x' -> padded (hid d) (hid d') ed (n x) (n' x').

Record layer_grown l l' := LayerGrown {
  n1_grown : norm_grown (n1 l) (n1 l');
  n2_grown : norm_grown (n2 l) (n2 l');
  att_grown : attn_free d d' ed e c (att l) (att l');
  ff_grown : mlp_free (act m) (hid d) (hid d') (units m) (units m') ed ef
    (ff l) (ff l');
  att_P : forall x t, P (att_out m l x t);
  ff_P : forall x, P (ff_out m l x) }.

Record model_grown := ModelGrown {
  grp_le : grp d <= grp d'; rep_le : rep d <= rep d';
  hidP : emb (hid d) (hid d') ed; laneP : emb (lane d) (lane d') e;
  unitsP : emb (units m) (units m') ef;
  rot_grown : forall t, respects (lane d) (lane d') e (rot m t) (rot m' t);
  c_exact : homothety c;
  c_scale : forall s, scale m' (c s) = scale m s;
  c_rot : forall t u k, rot m t (fun k => c (u k)) k = c (rot m t u k);
  act_same : act m' = act m; parallel_same : parallel m' = parallel m;
  table_grown : forall v, v < V ->
    padded (hid d) (hid d') ed (table m v) (table m' (ev v));
  layers_grown : deeper layer_grown (silent_layer m') (layers m) (layers m');
  nf_grown : norm_grown (nf m) (nf m');
  head_old : agree2 V (hid d) ev ed (lm_head m) (lm_head m');
  P_table : forall v, v < V -> P (table m v);
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
  apply: (attention_grown _ _ (grp_le mP) (rep_le mP) (hidP mP) (laneP mP)
    (rot_grown mP) (c_exact mP) (c_scale mP) (c_rot mP) (att_grown lP)) => // t' t'_lt.
  by have [Px' xx'] := xP t' t'_lt; apply: (n1_grown lP).
have Pa := P_add mP Px (att_P lP (fun t => n1 l (x t)) t).
split; first by apply: (P_add mP) => //; apply: (ff_P lP).
apply: padded_add (padded_add xx aa) _; rewrite /ff_out (act_same mP)
  (parallel_same mP).
apply: (mlp_grown (hidP mP) (unitsP mP) (ff_grown lP)).
by case: ifP => _; [apply: (n1_grown lP) | apply: (n2_grown lP) (padded_add xx aa)].
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

Lemma start_streams : streams (fun t => table m (tok t)) (fun t => table m' (tok' t)).
Proof.
by move=> t t_lt; split; [apply: (P_table mP) | apply: (table_grown mP)]; apply: tok_lt.
Qed.

(** MAIN 8 decoder_padded: After the last layer of a grown decoder, sequential
    or parallel, with any number of silent layers added anywhere, the residual
    is the old one, padded. *)
Theorem decoder_padded t : t < T ->
  padded (hid d) (hid d') ed (residual m tok t) (residual m' tok' t).
Proof.
by move/(layers_streams (layers_grown mP) start_streams) => -[].
Qed.

(** MAIN 8 decoder_logits: A grown decoder, sequential or parallel, with any
    number of silent layers added anywhere, has the logits of the old one. *)
Theorem decoder_logits t v : t < T -> v < V ->
  logits m' tok' t (ev v) = logits m tok t v.
Proof.
move=> t_lt v_lt; have [Px xx] := layers_streams (layers_grown mP) start_streams t_lt.
have [nn n0] := nf_grown mP Px xx; apply: (zero_insertion (hidP mP) _ nn).
  by move=> i i_lt; apply: (head_old mP).
by move=> j j_lt j_off; right; apply: n0.
Qed.

End Grown.
End Decoder.
