From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Dealt Mlp Experts RmsNorm LayerNorm Scale QkNorm.
From Growproof Require Import Decoder Centred.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(* Every family: what it fixes, what a config says, and the decoder of both.  *)
(*                                                                            *)
(*    family == what does not depend on the config: LayerNorm or RMSNorm,     *)
(*              norms before (pre) and behind (post) a block, how many norms  *)
(*              attention and MLP share where they run in parallel (0: they   *)
(*              do not), norms of q and k (RMSNorms of each head, or of all   *)
(*              heads together, or LayerNorms of each head, without a bias),  *)
(*              a gate, norms that multiply by 1 + weight, an embedding that  *)
(*              is multiplied by sqrt D.                                      *)
(*    family_of n together normed == that of model type n, the table of       *)
(*              growproof; together, normed: use_parallel_residual and        *)
(*              qk_layernorm, where a config has them.                        *)
(*    config == the numbers of a config: eps, norm_size (the divisor of the   *)
(*              residual's norms in a masked model; None: hidden_size), the   *)
(*              score scale (None: 1/sqrt K), how many lanes turn (None: all),*)
(*              multipliers of embedding and residual, what becomes of logits,*)
(*              activation.                                                   *)
(*    kind   == of a layer: theta (None: nothing turns), cosine and sine, any *)
(*              functions of position and frequency; the mask, any function   *)
(*              of a score: window and cap are in there.                      *)
(*    params, weights == the parameters of a layer, of a model. No bias is a  *)
(*              zero bias. A norm has weight and bias; RMSNorm ignores it.    *)
(*    decoder f c d F k == the decoder of these.                              *)
(*    divisor c D == what the norms over D lanes divide by.                   *)
(*    centre_weights D k == k, its writers centred.                           *)
(*    average_weights tied D k == k, whose writers hold, behind the first D   *)
(*              lanes, the mean of these; so does a head that is tied.        *)
(******************************************************************************)

Inductive qk_norm := NoNorm | OfHead | OfAll | LayerOfHead.
Record family := Family { is_layer : bool; pre : bool; post : bool; shared : nat;
  qk : qk_norm; has_gate : bool; plus_one : bool; root_embedding : bool }.

Inductive model_type := llama | mistral | qwen2 | phi3 | granite | smollm3 | mixtral
  | seed_oss | ernie4_5 | glm | arcee | qwen3 | qwen3_moe | olmo2 | olmo3 | gemma | gemma2
  | gemma3_text | glm4 | stablelm | cohere | phi | gpt_neox | gpt2 | starcoder2.

(* LayerNorm, before, behind, norms in parallel, of q and k, gate, 1 + weight, sqrt D *)
Definition family_of (n : model_type) (together normed : bool) : family := match n with
  | llama | mistral | qwen2 | phi3 | granite | smollm3 | mixtral | seed_oss | ernie4_5
  | glm => Family false true false 0 NoNorm true false false
  | arcee => Family false true false 0 NoNorm false false false
  | qwen3 | qwen3_moe => Family false true false 0 OfHead true false false
  | olmo2 | olmo3 => Family false false true 0 OfAll true false false
  | gemma => Family false true false 0 NoNorm true true true
  | gemma2 => Family false true true 0 NoNorm true true true
  | gemma3_text => Family false true true 0 OfHead true true true
  | glm4 => Family false true true 0 NoNorm true false false
  | stablelm =>
    Family true true false together (if normed then LayerOfHead else NoNorm) true false false
  | cohere => Family true true false 1 NoNorm true false false
  | phi => Family true true false 1 NoNorm false false false
  | gpt_neox => Family true true false (together + together) NoNorm false false false
  | gpt2 | starcoder2 => Family true true false 0 NoNorm false false false
  end.

Record config (R : Type) := Config { eps : R; norm_size : option nat; score : option R;
  lanes : option nat; ebd_times : R; res_times : R; cap_logits : R -> R;
  activation : R -> R }.
Record kind (R : Type) := Kind { theta : option R; cosine : nat -> R -> R;
  sine : nat -> R -> R; masked : nat -> nat -> R -> R }.
Record params (A : arith) := Params { of_kind : kind A; norm1 : vec A * vec A;
  norm2 : vec A * vec A; out1 : vec A * vec A; out2 : vec A * vec A;
  q_norm : vec A; k_norm : vec A; attw : attn A; ffw : feed A }.
Record weights (A : arith) := Weights { embedding : mat A; wpe : option (mat A);
  blocks : seq (params A); last_norm : vec A * vec A; head_w : mat A; head_b : vec A }.

Section Decoders.
Variable R : rcfType.
Let A := ring_arith R.
Let N : Type := (nat -> R) * (nat -> R).
Local Notation config := (config R).
Local Notation kind := (kind R).
Local Notation params := (params A).
Local Notation weights := (weights A).

Variables (power : R -> R -> R) (f : family).
Implicit Types (c : config) (d : dims) (w : N) (n : nat).

Definition one : R := if plus_one f then 1 else 0.
Definition divisor c n : nat := odflt n (norm_size c).
Definition norm c D w : (nat -> R) -> nat -> R :=
  if norm_size c is Some n then masked_norm (A := A) (fun x y => x - y) (fun x => x / n%:R)
    (fun q x => x / Num.sqrt (q / n%:R + eps c)) D
    (fun i => (is_layer f && (i < n)%N)%:R) (fun i => one + w.1 i)
    (fun i => if is_layer f then w.2 i else 0)
  else if is_layer f then ln D (eps c) (fun i => one + w.1 i) w.2
  else rms D (eps c) (fun i => one + w.1 i).
Definition norm_if (b : bool) c D w := if b then norm c D w else id.
Definition normed_qk K n e (w : nat -> R) : vec A -> vec A := match qk f with
  | NoNorm => id
  | OfHead => by_head (A := A) K (fun=> rms K e (fun k => one + w k))
  | OfAll => rms n e (fun i => one + w i)
  | LayerOfHead =>
    by_head (A := A) K (fun h => ln K e (fun k => one + w (h * K + k)%N) (fun=> 0))
  end.
Definition turn c K (kd : kind) t : vec A -> vec A := if theta kd is Some base then
    let n := odflt K (lanes c) in
    let speed k := power base (- (2 * k)%:R / n%:R) in
    rotary (A := A) (@GRing.opp R) n (fun k => cosine kd t (speed k))
      (fun k => sine kd t (speed k))
  else id.
Definition scaled c K (s : R) : R :=
  if score c is Some a then a * s else s / Num.sqrt K%:R.
Definition embed_times c D (x : R) : R :=
  x * ((if root_embedding f then Num.sqrt D%:R else 1) * ebd_times c).

Definition layer_of c d (l : params) : layer A :=
  let out w y i := norm_if (post f) c (hid d) w y i * res_times c in
  @Layer A (norm_if (pre f) c (hid d) (norm1 l)) (out (out1 l))
    (norm_if (pre f) c (hid d) (if shared f == 1%N then norm1 l else norm2 l))
    (out (out2 l))
    (normed_qk (lane d) (qry d) (eps c) (q_norm l))
    (normed_qk (lane d) (kv d) (eps c) (k_norm l))
    (turn c (lane d) (of_kind l)) (masked (of_kind l)) (attw l) (ffw l).
Definition model_of c d F (times : A -> A) tb ps ls w hw hb : model A :=
  @Model A d F (scaled c (lane d)) (activation c) (has_gate f) (shared f != 0%N) times tb
    ps (map (layer_of c d) ls) (norm c (hid d) w) hw hb (cap_logits c).
Definition decoder c d F (k : weights) := model_of c d F (embed_times c (hid d))
  (embedding k) (wpe k) (blocks k) (last_norm k) (head_w k) (head_b k).

Definition centre_params D (l : params) := Params (of_kind l) (norm1 l) (norm2 l)
  (out1 l) (out2 l) (q_norm l) (k_norm l) (centred_attn D (attw l)) (centred_feed D (ffw l)).
Definition centre_weights D (k : weights) := Weights (fun v => centre D (embedding k v))
  (omap (fun q t => centre D (q t)) (wpe k)) (map (centre_params D) (blocks k))
  (last_norm k) (head_w k) (head_b k).
(* behind the first D lanes, their mean *)
Definition average D (x : nat -> R) i : R := if (i < D)%N then x i else mean D x.
Definition average_mlp D (p : mlp_weights A) : mlp_weights A := @MlpWeights A (wg p)
  (bg p) (wu p) (bu p) (fun i u => average D (wd p ^~ u) i) (average D (bd p)).
Definition average_params D (l : params) := Params (of_kind l) (norm1 l) (norm2 l)
  (out1 l) (out2 l) (q_norm l) (k_norm l)
  (let p := attw l in @Attn A (wq p) (bq p) (wk p) (bk p) (wv p) (bv p)
    (fun i a => average D (wo p ^~ a) i) (average D (bo p)))
  (match ffw l with
   | Dense p => Dense (average_mlp D p)
   | Sparse s => Sparse (Experts (many s) (width s) (route s) (wr s)
       (fun e => average_mlp D (expert s e)))
   end).
Definition average_weights (tied : bool) D (k : weights) := Weights (A := A)
  (fun v => average D (embedding k v)) (omap (fun q t => average D (q t)) (wpe k))
  (map (average_params D) (blocks k)) (last_norm k)
  (fun v => if tied then average D (head_w k v) else head_w k v) (head_b k).
(* a LayerNorm before every reader, and nothing else that looks at the residual *)
Definition centrable : bool := [&& is_layer f, pre f, ~~ post f, ~~ plus_one f,
  ~~ root_embedding f & if qk f is (NoNorm | LayerOfHead) then true else false].
Definition lanes_in c K : bool := (odflt K (lanes c) <= K)%N.

Lemma centre_times n (a : R) x y : (forall i, (i < n)%N -> y i = x i * a) ->
  forall i, (i < n)%N -> centre n y i = centre n x i * a.
Proof.
move=> yE i i_lt; rewrite /centre yE // mulrBl; congr (_ - _).
by rewrite /mean (eq_rsum yE) rsumZ mulrAC.
Qed.

Section Centring.
Variables (c : config) (d : dims) (F : nat) (softmax : seq A -> seq A) (T : nat).
Hypotheses (D_gt0 : (0 < hid d)%N) (fam : centrable) (lanesP : lanes_in c (lane d)).
Hypothesis all_lanes : norm_size c = None.
Variable k : weights.
Let D := hid d.
Let m := decoder c d F k.

Lemma norm_blind w : mean_blind m (norm c D w).
Proof.
have /andP[layerE _] := fam; rewrite /norm all_lanes layerE.
exact: (@layernorm_mean_blind R m D_gt0).
Qed.

Lemma by_head_same n (g : nat -> vec A -> vec A) :
  (forall h x y, same (lane d) x y -> same (lane d) (g h x) (g h y)) ->
  extensional (A := A) (n * lane d) (by_head (A := A) (lane d) g).
Proof.
move=> gP x y xy a a_lt; apply: gP (modn_lt a_lt) => j j_lt.
by apply: xy; rewrite flat_lt ?(divn_lt a_lt).
Qed.

Lemma normed_same n e (w : nat -> R) :
  extensional (A := A) (n * lane d) (normed_qk (lane d) (n * lane d) e w).
Proof.
have := fam; rewrite /centrable /normed_qk => /and5P[_ _ _ _ /andP[_]].
case: (qk f) => // _; first by move=> x y.
by apply: by_head_same => h x y xy j j_lt; apply/eq_ln.
Qed.

Lemma layer_blind l : blind m (layer_of c d l).
Proof.
have := fam; rewrite /centrable => /and5P[_ preE /negPf postE _ _].
rewrite /layer_of /norm_if preE postE.
split=> //= [||x y xy i i_lt|x y xy i i_lt|||t]; try exact: norm_blind.
- by rewrite xy // [RHS](centre_times (x := x) (a := res_times c)).
- by rewrite xy // [RHS](centre_times (x := x) (a := res_times c)).
- exact: normed_same.
- exact: normed_same.
rewrite /turn; case: theta => [base|]; last by split.
exact: partial_rotary_pads.
Qed.

Definition centred_times v := centre D (fun i => embed_times c D (embedding k v i)).
Let kc := centre_weights D k.

Lemma centredE : centred m = model_of c d F id centred_times (wpe kc) (blocks kc)
  (last_norm k) (head_w k) (head_b k).
Proof. by rewrite /centred /m /decoder /model_of /= -!map_comp. Qed.

Lemma centred_kept tok t v : (t < T)%N ->
  logits softmax T (centred m) tok t v = logits softmax T m tok t v.
Proof.
apply: centred_logits => //; last exact: norm_blind.
apply/List.Forall_forall => l /List.in_map_iff[l0 [<- _]]; exact: layer_blind.
Qed.

Lemma centred_mean0 : let mean0 (x : vec A) := mean D x = 0 in
  [/\ forall t v, mean0 (embedded (centred m) t v),
      List.Forall (fun l0 => let l := layer_of c d l0 in
        (forall x t, mean0 (p1 l (att_out softmax T (centred m) l x t)))
        /\ forall x, mean0 (p2 l (ff_out (centred m) l x))) (blocks kc)
    & forall x y, mean0 x -> mean0 y -> mean0 (fun i => x i + y i)].
Proof.
have [P0 Pa Pf Padd] := @centred_streams R T softmax m D_gt0; split=> //.
apply/List.Forall_forall => l /List.in_map_iff[l0 [<- _]].
have := fam; rewrite /centrable => /and5P[_ _ /negPf postE _ _].
rewrite /layer_of /norm_if postE /=; split=> [x t|x]; rewrite meanZ.
  have := Pa (layer_of c d l0) x t; rewrite /layer_of /norm_if postE /= => ->.
  exact: mul0r.
have := Pf (layer_of c d l0) x; rewrite /layer_of /norm_if postE /= => ->.
exact: mul0r.
Qed.

End Centring.

End Decoders.
