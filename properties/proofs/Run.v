From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Dealt Mlp Experts Decoder Centred.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* The decoder of the theorems, made fast enough to be evaluated: each value  *)
(* is computed once and kept in a list. Integers.v and Binary.v run it.       *)
(*                                                                            *)
(*  memo T n x == x, its entries below T and n computed here and now.         *)
(*  run m tok == the logits of m, computed so.                                *)
(*  local_maps m l == the norms and rotary of layer l look at no lane that is *)
(*           not there.                                                       *)
(******************************************************************************)

Section Memo.
Variable A : arith.

Definition memo T n (x : mat A) : mat A :=
  let s := mkseq (fun t => mkseq (x t) n) T in fun t i => nth zero (nth [::] s t) i.

Lemma memoE T n x t : t < T -> same n (x t) (memo T n x t).
Proof. by move=> t_lt i i_lt; rewrite /memo !nth_mkseq. Qed.

End Memo.

Section Run.
Variables (A : arith) (softmax : seq A -> seq A) (T : nat) (m : model A).
Let d := dm m. Let D := hid d. Let F := units m.
Implicit Types (l : layer A) (x y : mat A).
Notation alike n x y := (forall t, t < T -> same n (x t) (y t)).

Definition run_context l (q k v : mat A) : mat A :=
  let turned n (y : mat A) := memo T n (fun t => by_head (lane d) (fun=> rot l t) (y t)) in
  let q' := turned (qry d) q in let k' := turned (kv d) k in
  let p := mkseq (fun t => mkseq (fun h =>
    softmax (mkseq (score (mask l) d (fun=> id) (scale m) q' k' t h) T)) (hds d)) T in
  fun t a => let h := a %/ lane d in
    dot T (nth zero (nth [::] (nth [::] p t) h))
      (fun t' => head d (h %/ rep d) (v t') (a %% lane d)).

Definition run_attention l x : mat A :=
  let q := memo T (qry d) (fun t => query d (qn l) (att l) (x t)) in
  let k := memo T (kv d) (fun t => key d (kn l) (att l) (x t)) in
  let v := memo T (kv d) (fun t => value d (att l) (x t)) in
  let z := memo T (qry d) (run_context l q k v) in
  memo T D (fun t => affine (qry d) (wo (att l)) (bo (att l)) (z t)).

Definition run_mlp l x : mat A := match ff l with
  | Dense p => let u := memo T F (fun t => hidden (gated m) (act m) D p (x t)) in
               memo T D (fun t => affine F (wd p) (bd p) (u t))
  | Sparse _ => memo T D (fun t => ff_out m l (x t))
  end.

Definition run_block x l : mat A :=
  let y := run_attention l (memo T D (fun t => n1 l (x t))) in
  let a := memo T D (fun t i => x t i +. p1 l (y t) i) in
  let z := run_mlp l (memo T D (fun t => n2 l (if parallel m then x t else a t))) in
  memo T D (fun t i => a t i +. p2 l (z t) i).

Definition run tok : mat A :=
  let x := foldl run_block (memo T D (start m tok)) (layers m) in
  let y := memo T D (fun t => nf m (x t)) in
  fun t v => cap m (affine D (lm_head m) (lm_bias m) (y t) v).

Record local_maps l := LocalMaps {
  n1_local : extensional D (n1 l); n2_local : extensional D (n2 l);
  p1_local : extensional D (p1 l); p2_local : extensional D (p2 l);
  qn_local : extensional (qry d) (qn l); kn_local : extensional (kv d) (kn l);
  rot_local : forall t, respects (lane d) (lane d) id (rot l t) (rot l t) }.

Lemma memo_alike n x y : alike n x y -> alike n x (memo T n y).
Proof. by move=> xy t t_lt i i_lt; rewrite -(xy t t_lt i i_lt); apply: memoE. Qed.

Lemma affine_alike n W b x y : alike n x y -> forall n',
  alike n' (fun t => affine n W b (x t)) (fun t => affine n W b (y t)).
Proof. by move=> xy n' t t_lt i _; apply/esym/affine_same/xy. Qed.

Lemma context_alike l q q0 k k0 v v0 : local_maps l ->
  alike (qry d) q q0 -> alike (kv d) k k0 -> alike (kv d) v v0 ->
  alike (qry d) (context softmax (mask l) T d (rot l) (scale m) q k v)
                (context softmax (mask l) T d (rot l) (scale m) q0 k0 v0).
Proof.
move=> lP qq kk vv t t_lt a a_lt; have h_lt := divn_lt a_lt; have g_lt := divn_lt h_lt.
rewrite /context /prob; have -> : mkseq (score (mask l) d (rot l) (scale m) q0 k0 t
    (a %/ lane d)) T = mkseq (score (mask l) d (rot l) (scale m) q k t (a %/ lane d)) T.
  apply/eq_in_map => t'; rewrite mem_iota => t'_lt; rewrite /score.
  congr (mask _ _ _ (scale _ _)); apply: eq_osum => i i_lt; congr (_ *. _).
    apply: (proj1 (rot_local lP t)) i_lt => j j_lt.
    exact/qq/flat_lt.
  apply: (proj1 (rot_local lP t')) i_lt => j j_lt.
  exact/kk/flat_lt.
apply: eq_osum => t' t'_lt; congr (_ *. _).
exact: vv (flat_lt g_lt (modn_lt a_lt)).
Qed.

Lemma run_contextE l q k v : alike (qry d)
  (context softmax (mask l) T d (rot l) (scale m) q k v) (run_context l q k v).
Proof.
move=> t t_lt a a_lt; have h_lt := divn_lt a_lt.
rewrite /run_context /context /prob !nth_mkseq //; congr (osum _ _).
have turnedE n (y : mat A) t' g i : t' < T -> g < n -> i < lane d ->
    head d g (memo T (n * lane d) (fun t => by_head (lane d) (fun=> rot l t) (y t)) t') i
    = rot l t' (head d g (y t')) i.
  by move=> t'_lt g_lt i_lt; rewrite /head memoE ?flat_lt // by_head_at.
suff -> : mkseq (score (mask l) d (rot l) (scale m) q k t (a %/ lane d)) T
  = mkseq (score (mask l) d (fun=> id) (scale m)
      (memo T (qry d) (fun t => by_head (lane d) (fun=> rot l t) (q t)))
      (memo T (kv d) (fun t => by_head (lane d) (fun=> rot l t) (k t))) t (a %/ lane d)) T by [].
apply/eq_in_map => t'; rewrite mem_iota => t'_lt; congr (mask _ _ _ (scale _ _)).
by apply: eq_osum => i i_lt; rewrite !turnedE ?(divn_lt h_lt).
Qed.

Lemma run_attentionE l x y : local_maps l -> alike D x y ->
  alike D (att_out softmax T m l x) (run_attention l y).
Proof.
move=> lP xy; have xyP W b t : t < T -> affine D W b (x t) =1 affine D W b (y t).
  by move=> t_lt; apply/affine_same/xy.
apply/memo_alike/affine_alike/memo_alike => t t_lt a a_lt.
rewrite [LHS]run_contextE //; apply: context_alike a_lt => // {a t t_lt}; apply: memo_alike.
- by move=> t t_lt; apply: (qn_local lP) => a _; rewrite -xyP.
- by move=> t t_lt; apply: (kn_local lP) => a _; rewrite -xyP.
by move=> t t_lt a _; rewrite /value -xyP.
Qed.

Lemma run_mlpE l x y : alike D x y ->
  alike D (fun t => ff_out m l (x t)) (run_mlp l y).
Proof.
move=> xy; rewrite /run_mlp; case ffE: (ff l) => [p|s]; last first.
  by apply: memo_alike => t t_lt; apply/ff_same/xy.
rewrite /ff_out ffE.
apply/memo_alike/affine_alike/memo_alike => t t_lt u _.
by rewrite /hidden !(affine_same _ _ (xy t t_lt)).
Qed.

Lemma run_blockE l x y : local_maps l -> alike D x y ->
  alike D (block softmax T m x l) (run_block y l).
Proof.
move=> lP xy; rewrite /run_block /block.
pose a t i := x t i +. p1 l (att_out softmax T m l (fun t => n1 l (x t)) t) i.
have aP : alike D a (memo T D (fun t i => y t i +. p1 l (run_attention l
    (memo T D (fun t => n1 l (y t))) t) i)).
  apply: memo_alike => t t_lt i i_lt; rewrite /a xy //; congr (_ +. _).
  apply: (p1_local lP) i_lt; apply: (run_attentionE lP) t_lt.
  by apply: memo_alike => t' t'_lt; apply: (n1_local lP); apply: xy.
apply: memo_alike => t t_lt i i_lt; rewrite -/(a t) aP //; congr (_ +. _).
apply: (p2_local lP) i_lt.
refine (@run_mlpE l (fun t => n2 l (if parallel m then x t else a t)) _ _ t t_lt).
apply: memo_alike => t' t'_lt; apply: (n2_local lP).
by case: ifP => _; [apply: xy | apply: aP].
Qed.

(** MAIN 8 run_logits: The decoder that is evaluated, on integers and in binary64, and
    compared with the clone there, has the logits of the decoder of the theorems. *)
Theorem run_logits tok t v : List.Forall local_maps (layers m) -> extensional D (nf m) ->
  t < T -> run tok t v = logits softmax T m tok t v.
Proof.
move=> lsP nfP t_lt; congr (cap m _); apply/esym/affine_same.
refine (@memo_alike D (fun t => nf m (residual softmax T m tok t)) _ _ t t_lt) => t' t'_lt.
apply: nfP.
suff E : alike D (residual softmax T m tok)
    (foldl run_block (memo T D (start m tok)) (layers m)) by apply: E.
have : alike D (start m tok) (memo T D (start m tok)) by apply: memo_alike.
rewrite /residual; elim: (layers m) (start m tok) (memo _ _ _) lsP => //= l s IHs x y.
by case/List.Forall_cons_iff => lP sP xy; apply: IHs sP (run_blockE lP xy).
Qed.

End Run.
