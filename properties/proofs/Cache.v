From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention Mlp.
From Growproof Require Import Decoder Centred Run.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* Decoding token by token, with what each layer keeps of the tokens before.  *)
(*                                                                            *)
(*  now n x == x, its entries below n computed here and now.                  *)
(*  turned m l t y == the key or query y, each head turned as at position t.  *)
(*  kept A == a layer's cache: the turned key and the value of each token.    *)
(*  cached_logits m tok t == the logits behind token t, which is run alone,   *)
(*            after the tokens before it have been, each alone.               *)
(*  hides softmax h == a row has a weight for each score; scores h at its end *)
(*            have no weight, and change no other.                            *)
(*  looks_back m h l == layer l makes every score of a later token h.           *)
(*  autoregressive m h == every layer of m does, and norms and rotary look at *)
(*            no lane that is not there.                                      *)
(******************************************************************************)

Definition now (A : arith) n (x : vec A) : vec A := let s := mkseq x n in nth zero s.

Lemma nowE (A : arith) n (x : vec A) : same n x (now n x).
Proof. by move=> i i_lt; rewrite /now nth_mkseq. Qed.

Definition hides (A : arith) (softmax : seq A -> seq A) h := forall s n, 0 < size s ->
  size (softmax s) = size s /\ softmax (s ++ nseq n h) = softmax s ++ nseq n zero.

(* exp of each score less the largest, over their ordered sum *)
Definition shares (A : arith) (exp : A -> A) (less over : A -> A -> A)
    (peak : seq A -> A) (s : seq A) : seq A :=
  let w := [seq exp (less x (peak s)) | x <- s] in
  [seq over y (osum (size w) (nth zero w)) | y <- w].

(** MAIN 4 softmax_hides: The softmax of exponentials, each less the largest score and
    divided by their ordered sum, gives no weight to a score whose exponential is
    zero, and changes no other by it. *)
Theorem softmax_hides (A : arith) exp less over peak (h : A) :
  (forall z, exp (less h z) = zero) -> (forall z, over zero z = zero) ->
  (forall s n, 0 < size s -> peak (s ++ nseq n h) = peak s) ->
  hides (shares exp less over peak) h.
Proof.
move=> exp0 over0 peakP s n s_gt0; split; first by rewrite !size_map.
rewrite /shares peakP // map_cat; set w := map _ s.
rewrite map_nseq exp0.
suff -> : osum (size (w ++ nseq n zero)) (nth zero (w ++ nseq n zero))
    = osum (size w) (nth zero w) by rewrite map_cat map_nseq over0.
rewrite size_cat; apply: (@osum_insert A _ _ id) (emb_id (leq_addr _ _)) _.
split=> i i_lt; first by rewrite nth_cat i_lt.
by rewrite img_id => /negPf w_i; rewrite nth_cat w_i nth_nseq if_same.
Qed.

Section Cache.
Variables (A : arith) (softmax : seq A -> seq A) (m : model A).
Let d := dm m. Let D := hid d.
Implicit Types (l : layer A) (x y q : vec A).

Definition kept := seq (vec A * vec A).
Implicit Types (c : kept) (cs : seq kept).
Definition keys c t := (nth (fun=> zero, fun=> zero) c t).1.
Definition values c t := (nth (fun=> zero, fun=> zero) c t).2.

Definition turned l t : vec A -> vec A := by_head (lane d) (fun=> rot l t).
Definition entry l t y :=
  (now (kv d) (turned l t (key d (kn l) (att l) y)), now (kv d) (value d (att l) y)).

(* t: the position of the token that is run; c: with its own entry *)
Definition cached_attention l t c y : vec A :=
  let q := now (qry d) (turned l t (now (qry d) (query d (qn l) (att l) y))) in
  now D (affine (qry d) (wo (att l)) (bo (att l)) (now (qry d) (context softmax (mask l)
    (size c) d (fun=> id) (scale m) (fun=> q) (keys c) (values c) t))).

Definition cached_block l t c x : kept * vec A :=
  let y := now D (n1 l x) in let c' := rcons c (entry l t y) in
  let z := cached_attention l t c' y in let a := now D (fun i => x i +. p1 l z i) in
  let u := now D (ff_out m l (now D (n2 l (if parallel m then x else a)))) in
  (c', now D (fun i => a i +. p2 l u i)).

Fixpoint through t ls cs x : seq kept * vec A := if ls is l :: ls' then
    let b := cached_block l t (nth [::] cs 0) x in
    let r := through t ls' (behead cs) b.2 in (b.1 :: r.1, r.2)
  else ([::], x).

Fixpoint caches tok n : seq kept :=
  if n is t.+1 then (through t (layers m) (caches tok t) (now D (start m tok t))).1
  else [::].

Definition cached_logits tok t : vec A :=
  let x := (through t (layers m) (caches tok t) (now D (start m tok t))).2 in
  let y := now D (nf m x) in fun v => cap m (affine D (lm_head m) (lm_bias m) y v).

Variables (h : A) (T : nat).
Hypothesis softmaxP : hides softmax h.
Definition looks_back l := forall t t' s, t < t' -> mask l t t' s = h.

Lemma turned_head l t y g k : k < lane d ->
  head d g (turned l t y) k = rot l t (head d g y) k.
Proof.
move=> k_lt; have K_gt0 := leq_ltn_trans (leq0n _) k_lt.
by rewrite /head /turned /by_head divnMDl // (divn_small k_lt) addn0 modnMDl modn_small.
Qed.

Lemma turned_same l t n y y' : local_maps m l -> same (n * lane d) y y' ->
  same (n * lane d) (turned l t y) (turned l t y').
Proof.
move=> lP yy a a_lt; apply: (proj1 (rot_local lP t)) (modn_lt a_lt) => k k_lt.
exact/yy/flat_lt/k_lt/divn_lt.
Qed.

Lemma map_all (S : Type) (f : nat -> S) z s : (forall i, i \in s -> f i = z) ->
  map f s = nseq (size s) z.
Proof.
elim: s => //= i s IHs fz; rewrite fz ?mem_head // IHs // => j j_in.
by rewrite fz // inE j_in orbT.
Qed.

Section Layer.
Variables (l : layer A) (t : nat).
Hypotheses (lP : local_maps m l) (lB : looks_back l) (t_lt : t < T).

Lemma context_cached (q k v : mat A) q' c : size c = t.+1 ->
  same (qry d) (turned l t (q t)) q' ->
  (forall t', t' <= t -> same (kv d) (turned l t' (k t')) (keys c t')
                         /\ same (kv d) (v t') (values c t')) ->
  same (qry d) (context softmax (mask l) T d (rot l) (scale m) q k v t)
    (context softmax (mask l) (size c) d (fun=> id) (scale m) (fun=> q') (keys c)
      (values c) t).
Proof.
move=> -> qq cP a a_lt; have h_lt := divn_lt a_lt; have g_lt := divn_lt h_lt.
set b := a %/ lane d; pose old := score (mask l) d (rot l) (scale m) q k t b.
pose new := score (mask l) d (fun=> id) (scale m) (fun=> q') (keys c) t b.
have scores t' : t' <= t -> old t' = new t'.
  move=> t'_le; rewrite /old /new /score; congr (mask l _ _ (scale m _)).
  apply: eq_osum => i i_lt; rewrite -!turned_head //; congr (_ *. _); apply/esym.
    exact/qq/flat_lt.
  exact/(cP _ t'_le).1/flat_lt.
have [new_size new_row] := @softmaxP (mkseq new t.+1) (T - t.+1) isT.
have row : softmax (mkseq old T) = softmax (mkseq new t.+1) ++ nseq (T - t.+1) zero.
  rewrite -new_row /mkseq -{1}(subnKC t_lt) iotaD map_cat.
  congr (softmax (_ ++ _)); first by apply/eq_in_map => i; rewrite mem_iota => /scores.
  rewrite (map_all (z := h)) ?size_iota // => i; rewrite mem_iota => /andP[t_i _].
  exact: lB.
apply/esym; apply: (@osum_insert A t.+1 T id) (emb_id t_lt) _; split=> i.
  move=> i_lt; rewrite /prob -/old -/new row nth_cat new_size size_mkseq i_lt.
  by congr (_ *. _); apply/esym; apply: (cP _ _).2 => //; apply: flat_lt (modn_lt a_lt).
move=> i_lt; rewrite img_id => t_i; rewrite /prob -/old row nth_cat new_size size_mkseq.
by rewrite (negPf t_i) nth_nseq if_same mul0x.
Qed.

Definition holds_layer n (x : mat A) c := size c = n /\ forall t', t' < n ->
  same (kv d) (turned l t' (key d (kn l) (att l) (n1 l (x t')))) (keys c t')
  /\ same (kv d) (value d (att l) (n1 l (x t'))) (values c t').

Lemma block_cached (x : mat A) y c : holds_layer t x c -> same D (x t) y ->
  let b := cached_block l t c y in
  holds_layer t.+1 x b.1 /\ same D (block softmax T m x l t) b.2.
Proof.
move=> [c_size cP] xy /=; set c' := rcons _ _; set n := now D (n1 l y).
have nP : same D (n1 l (x t)) n.
  by move=> i i_lt; rewrite /n nowE //; apply: (n1_local lP xy).
have kP : same (kv d) (key d (kn l) (att l) (n1 l (x t))) (key d (kn l) (att l) n).
  by apply: (kn_local lP) => a _; rewrite (affine_same _ _ nP).
have qP : same (qry d) (query d (qn l) (att l) (n1 l (x t)))
                       (now (qry d) (query d (qn l) (att l) n)).
  move=> a a_lt; rewrite nowE //; apply: (qn_local lP) a_lt => o _.
  by rewrite (affine_same _ _ nP).
have cP' : holds_layer t.+1 x c'.
  split=> [|t']; first by rewrite size_rcons c_size.
  rewrite ltnS leq_eqVlt /keys /values nth_rcons c_size => /orP[/eqP->|t'_lt].
    rewrite ltnn eqxx; split=> a a_lt; apply: etrans (nowE _ a_lt) _.
      exact: turned_same kP _ a_lt.
    by rewrite /value (affine_same _ _ nP).
  by rewrite t'_lt; apply: cP.
split=> //; set z := cached_attention l t c' n.
have zP : same D (att_out softmax T m l (fun t => n1 l (x t)) t) z.
  move=> i i_lt; rewrite /z /cached_attention nowE //; apply/esym/affine_same => a a_lt.
  rewrite nowE //.
  refine (@context_cached (fun t => query d (qn l) (att l) (n1 l (x t)))
    (fun t => key d (kn l) (att l) (n1 l (x t)))
    (fun t => value d (att l) (n1 l (x t))) _ c' _ _ _ a a_lt).
  - exact: cP'.1.
  - by move=> o o_lt; rewrite nowE //; apply: (@turned_same l t (hds d)) o_lt.
  by move=> t' /cP'.2.
have aP i : i < D -> now D (fun i => y i +. p1 l z i) i = x t i +. p1 l (att_out
    softmax T m l (fun t => n1 l (x t)) t) i.
  by move=> i_lt; rewrite nowE // (p1_local lP zP) // xy.
move=> i i_lt; rewrite nowE // aP //; congr (_ +. _).
apply: (p2_local lP) i_lt => j j_lt.
rewrite nowE //; apply: ff_same j_lt => o o_lt; rewrite nowE //.
by apply: (n2_local lP) o_lt => k k_lt; case: ifP => _; [apply: xy | apply: aP].
Qed.

End Layer.

Fixpoint holds n (x : mat A) ls cs : Prop := if ls is l :: ls' then
    holds_layer l n x (nth [::] cs 0) /\ holds n (block softmax T m x l) ls' (behead cs)
  else True.

Lemma through_cached ls t (x : mat A) y cs : List.Forall (local_maps m) ls ->
  List.Forall looks_back ls -> t < T -> holds t x ls cs -> same D (x t) y ->
  let r := through t ls cs y in
  holds t.+1 x ls r.1 /\ same D (foldl (block softmax T m) x ls t) r.2.
Proof.
move=> + + t_lt; elim: ls x y cs => //= l ls IHs x y cs.
case/List.Forall_cons_iff => lP lsP /List.Forall_cons_iff[lB lsB] [cP csP] xy.
have [bP yP] := block_cached lP lB t_lt cP xy.
by have [rP zP] := IHs _ _ _ lsP lsB csP yP.
Qed.

Record autoregressive := Autoregressive {
  layers_local : List.Forall (local_maps m) (layers m); nf_local : extensional D (nf m);
  layers_back : List.Forall looks_back (layers m) }.
Hypothesis mP : autoregressive.
Variable tok : nat -> nat.

Lemma caches_hold n : n <= T -> holds n (start m tok) (layers m) (caches tok n).
Proof.
elim: n => [_|n IHn n_lt]; last first.
  exact: (through_cached (layers_local mP) (layers_back mP) n_lt (IHn (ltnW n_lt))
    (@nowE A D _)).1.
by elim: (layers m) (start m tok) => //= l ls IHs x; split.
Qed.

(** MAIN 8 cache_whole: Token by token, with a cache of the turned keys and the
    values of the tokens before, a decoder of the normal form has the logits of the
    whole text at once, for every softmax in which a hidden score has no weight, and
    masks that hide what comes later. *)
Theorem cache_whole t v : t < T ->
  cached_logits tok t v = logits softmax T m tok t v.
Proof.
move=> t_lt; have [_ xP] := through_cached (layers_local mP) (layers_back mP) t_lt
  (caches_hold (ltnW t_lt)) (@nowE A D _).
congr (cap m _); apply/esym/affine_same => i i_lt; rewrite nowE //.
exact: (nf_local mP) xP i i_lt.
Qed.

End Cache.

(** MAIN 8 cache_grown: Token by token with a key/value cache, a grown decoder has
    the logits that the old one has token by token with its own. *)
Theorem cache_grown (A : arith) softmax T V (P : vec A -> Prop) ed hm e ef ev c f
    (m m' : model A) (h : A) :
  hides softmax h -> autoregressive m h -> autoregressive m' h ->
  model_grown softmax T P V ed hm e ef ev c f m m' ->
  forall tok, (forall t, t < T -> tok t < V) -> forall t v, t < T -> v < V ->
  cached_logits softmax m' (fun t => ev (tok t)) t (ev v)
  = cached_logits softmax m tok t v.
Proof.
move=> hP mC mC' mP tok tok_lt t v t_lt v_lt.
by rewrite !(cache_whole hP _ _ _ t_lt) // (decoder_logits mP).
Qed.
