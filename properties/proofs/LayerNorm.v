From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith Insertion Linear RmsNorm.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.

(******************************************************************************)
(*       mean D x == the mean of D lanes.                                     *)
(*     centre D x == x minus its mean.                                        *)
(* ln D eps w b x == LayerNorm: rms D eps w (centre D x) + b.                 *)
(* masked_norm == the article's clone of LayerNorm: the old divisor is kept   *)
(*             (in mean and g) and the mean leaves only the lanes of a mask.  *)
(******************************************************************************)

Section Masked.
Variables (A : arith) (sub : A -> A -> A) (mean : A -> A) (g : A -> A -> A).
Hypotheses (sub00 : sub zero zero = zero) (g0 : forall s, g s zero = zero).

Definition masked_norm n (lanes w b x : vec A) : vec A :=
  let c i := sub (x i) (mean (osum n x) *. lanes i) in
  fun i => w i *. g (osum n (fun i => c i *. c i)) (c i) +. b i.

(** MAIN 7 masked_norm_padded: The article's own LayerNorm, which keeps the old
    divisor and removes the mean from the old lanes only, commutes with padding
    in any arithmetic. *)
Theorem masked_norm_padded D D' e lanes lanes' w w' b b' x x' : emb D D' e ->
  padded D D' e lanes lanes' -> agree D e w w' -> padded D D' e b b' ->
  padded D D' e x x' ->
  padded D D' e (masked_norm D lanes w b x) (masked_norm D' lanes' w' b' x').
Proof.
move=> eP [ll l0] ww [bb b0] xP; have [xx x0] := xP.
rewrite /masked_norm (osum_insert eP xP); set m := mean _.
have cP : padded D D' e (fun i => sub (x i) (m *. lanes i))
                        (fun i => sub (x' i) (m *. lanes' i)).
  by split=> [i i_lt|j j_lt j_off]; rewrite ?xx ?ll // x0 // l0 // mulx0.
rewrite (@osum_insert _ D D' e (fun i => sub (x i) (m *. lanes i)
  *. sub (x i) (m *. lanes i))) //; last first.
  by split=> [i i_lt|j j_lt j_off]; rewrite (cP.1, cP.2) // mulx0.
split=> [i i_lt|j j_lt j_off]; first by rewrite ww // bb // cP.1.
by rewrite cP.2 // g0 mulx0 add0x b0.
Qed.

End Masked.

Local Open Scope ring_scope.

Section LayerNorm.
Variable R : rcfType.
Implicit Types (w b x : nat -> R) (eps : R).

Definition mean D x := rsum D x / D%:R.
Definition centre D x i := x i - mean D x.
Definition ln D eps w b x i := rms D eps w (centre D x) i + b i.

Lemma centre0 D x i : mean D x = 0 -> centre D x i = x i.
Proof. by rewrite /centre => ->; rewrite subr0. Qed.

Variable D : nat.
Hypothesis D_gt0 : (0 < D)%N.
Let D_neq0 : D%:R != 0 :> R. Proof. by rewrite pnatr_eq0 -lt0n. Qed.

Lemma mean_centre x : mean D (centre D x) = 0.
Proof. by rewrite /mean rsumD rsum_const mulNr mulfVK // subrr mul0r. Qed.

Lemma meanD x y : mean D (fun i => x i + y i) = mean D x + mean D y.
Proof. by rewrite /mean rsumD mulrDl. Qed.

Lemma meanZ x a : mean D (fun i => x i * a) = mean D x * a.
Proof. by rewrite /mean rsumZ mulrAC. Qed.

Lemma eq_ln eps w b x y i : (forall j, (j < D)%N -> x j = y j) -> (i < D)%N ->
  ln D eps w b x i = ln D eps w b y i.
Proof.
move=> xy i_lt; have m : mean D x = mean D y by rewrite /mean (eq_rsum xy).
rewrite /ln /rms /meansq (@eq_rsum _ D _ (fun j => centre D y j ^+ 2)) => [|j j_lt].
  by rewrite /centre m xy.
by rewrite /centre m xy.
Qed.

(** MAIN 7 centring_behind_layernorm: Removing the mean of the residual changes
    nothing behind a LayerNorm. *)
Theorem centring_behind_layernorm eps w b x i : (i < D)%N ->
  ln D eps w b (centre D x) i = ln D eps w b x i.
Proof.
move=> i_lt; have cc j : centre D (centre D x) j = centre D x j.
  exact/centre0/mean_centre.
rewrite /ln /rms cc /meansq (@eq_rsum _ D _ (fun j => centre D x j ^+ 2)) // => j _.
by rewrite cc.
Qed.

(** MAIN 7 centred_writer: Centring the columns of a writer's weight, and its
    bias, removes the mean from what it writes. *)
Theorem centred_writer n (W : nat -> nat -> R) b (u : nat -> R) o :
  @affine (ring_arith R) n (fun o i => centre D (W^~ i) o) (centre D b) u o
  = centre D (@affine (ring_arith R) n W b u) o.
Proof.
pose y n o : R := @dot (ring_arith R) n (W o) u.
suff yE : @dot (ring_arith R) n (fun i => centre D (W^~ i) o) u = centre D (y n) o.
  by rewrite /affine yE /centre [X in _ = _ - X](meanD (y n) b) opprD [RHS]addrACA.
elim: n => [|n IHn]; first by rewrite /centre /mean /rsum osum0 // mul0r subr0.
rewrite /dot [LHS]/= [osum n _]IHn /centre.
rewrite [X in _ = _ - X](meanD (y n) (fun o => W o n * u n)).
by rewrite meanZ opprD [RHS]addrACA -mulrBl.
Qed.

(** MAIN 7 silent_row: A row a / w of the head gives every residual the logit a
    times the sum of b / w, for the weight w and the bias b of the last LayerNorm. *)
Theorem silent_row eps w b x a : (forall i, (i < D)%N -> w i != 0) ->
  @dot (ring_arith R) D (fun i => a / w i) (ln D eps w b x)
  = a * rsum D (fun i => b i / w i).
Proof.
move=> w_neq0; set q := Num.sqrt (meansq D (centre D x) + eps).
have c0 : rsum D (centre D x) = 0.
  by have := mean_centre x; rewrite /mean => /(congr1 ( *%R^~ D%:R)); rewrite mulfVK ?mul0r.
rewrite /dot [LHS](@eq_rsum _ D _ (fun i => centre D x i * (a / q) + b i / w i * a)).
  by rewrite rsumD !rsumZ c0 mul0r add0r mulrC.
move=> i i_lt; rewrite /= /ln /rms -/q mulrDr; congr (_ + _).
  by rewrite mulrA mulfVK ?w_neq0 // mulrCA.
by rewrite mulrAC [a * _]mulrC [RHS]mulrAC.
Qed.

Lemma centreD x y i : centre D (fun i => x i + y i) i = centre D x i + centre D y i.
Proof. by rewrite /centre meanD opprD addrACA. Qed.

Variables (D' : nat) (e : nat -> nat).
Hypothesis eP : emb D D' e.
Let r : R := D%:R / D'%:R.

Lemma mean_padded x x' : rpadded D D' e x x' -> mean D' x' = r * mean D x.
Proof.
move=> xP; by rewrite /mean (rsum_insert eP xP) /r [RHS]mulrC mulrA mulfVK.
Qed.

(** MAIN 7 layernorm_zero_mean: On a residual of mean zero, LayerNorm commutes
    with padding, exactly, if its weight is multiplied by sqrt(D/D') and its eps
    by D/D'. *)
Theorem layernorm_zero_mean eps w w' b b' x x' : mean D x = 0 ->
  (forall i, (i < D)%N -> w' (e i) = w i * Num.sqrt r) -> rpadded D D' e b b' ->
  rpadded D D' e x x' ->
  rpadded D D' e (ln D eps w b x) (ln D' (eps * r) w' b' x').
Proof.
move=> x_mean0 ww bP xP; have x'_mean0 : mean D' x' = 0.
  by rewrite (mean_padded xP) x_mean0 mulr0.
have cP : rpadded D D' e (centre D x) (centre D' x').
  split=> [i i_lt|j j_lt j_off]; rewrite !centre0 //; first exact: xP.1.
  exact: xP.2.
have [nn n0] := rmsnorm_scaled D_gt0 eP eps ww cP.
split=> [i i_lt|j j_lt j_off]; rewrite /ln; first by rewrite nn // bP.1.
by rewrite n0 // bP.2 // add0x.
Qed.

(** MAIN 7 layernorm_impossible: For D' > D >= 2 and a weight that is not zero,
    no new weight, bias and eps make LayerNorm commute with padding for all
    inputs, even in the old lanes alone. *)
Theorem layernorm_impossible eps w b i0 : (1 < D)%N -> (D < D')%N -> 0 <= eps ->
  (i0 < D)%N -> w i0 != 0 ->
  ~ exists w' b' eps', forall x x', rpadded D D' e x x' ->
    forall i, (i < D)%N -> ln D' eps' w' b' x' (e i) = ln D eps w b x i.
Proof.
move=> D_gt1 D_lt eps_ge0 i0_lt w_neq0 [w' [b' [eps' H]]].
pose padR x := @pad (ring_arith R) D e x.
have padP x : rpadded D D' e x (padR x) by apply/(padE _ _ eP).
have D'_gt0 := leq_trans D_gt0 (ltnW D_lt).
have r_lt1 : r < 1 by rewrite ltr_pdivr_mulr ?ltr0n // mul1r ltr_nat.
have lane x : centre D' (padR x) (e i0) = x i0 - r * mean D x.
  by rewrite /centre (mean_padded (padP x)) (padP x).1.
(* a constant input c: the old output is the bias, the old lanes hold c - r c *)
have old c : ln D eps w b (fun=> c) i0 = b i0.
  by rewrite /ln /rms /centre /mean rsum_const mulfK // subrr mul0r mulr0 add0r.
have mean_const (c : R) : mean D (fun=> c) = c by rewrite /mean rsum_const mulfK.
have new c := H _ _ (padP (fun=> c)) _ i0_lt.
have b'E : b' (e i0) = b i0.
  by rewrite -(old 0) -(new 0) /ln /rms lane mean_const mulr0 subr0 mul0r mulr0 add0r.
have w'0 : w' (e i0) = 0.
  pose k := (1 - r) ^+ 2 / D'%:R.
  have k_gt0 : 0 < k by rewrite divr_gt0 ?ltr0n // exprn_gt0 // subr_gt0.
  pose c := 1 + `|eps'| / k.
  have c_ge1 : 1 <= c by rewrite ler_addl divr_ge0 // ltW.
  have c_gt0 : 0 < c := lt_le_trans ltr01 c_ge1.
  have s_gt0 : 0 < meansq D' (centre D' (padR (fun=> c))) + eps'.
    have ge := meansq_ge (centre D' (padR (fun=> c))) (eP.1 _ i0_lt).
    apply: lt_le_trans (ler_add ge (lexx eps')); rewrite lane mean_const.
    rewrite -{1}[c]mul1r -mulrBl exprMn mulrAC -/k.
    have: k + `|eps'| <= k * c ^+ 2.
      have -> : k + `|eps'| = k * c.
        by rewrite mulrDr mulr1 mulrCA divff ?mulr1 // gt_eqF.
      by rewrite ler_pmul2l // expr2 ler_pmulr.
    rewrite -(ler_add2r eps'); apply: lt_le_trans.
    by rewrite -addrA ltr_paddr // -ler_subl_addr sub0r -normrN ler_norm.
  have := new c; rewrite old /ln b'E -{2}[b i0]add0r => /addIr/eqP.
  rewrite /rms lane mean_const mulf_eq0 => /orP[/eqP//|].
  rewrite mulf_eq0 invr_eq0 sqrtr_eq0 leNgt s_gt0 orbF.
  by rewrite -{1}[c]mul1r -mulrBl mulf_eq0 subr_eq0 [1 == r]eq_sym lt_eqF // gt_eqF.
(* with weight zero every output is the bias, but the input below has another *)
pose x i : R := (i == i0)%:R.
have := H _ _ (padP x) _ i0_lt; rewrite /ln /rms w'0 mul0r b'E => /addIr/esym/eqP.
have D_lt1 : D%:R^-1 < 1 :> R by rewrite invf_lt1 ?ltr0n // ltr1n.
have x0 : centre D x i0 != 0.
  rewrite /centre /mean (_ : rsum D x = 1) ?mul1r; last first.
    have one : emb 1 D (fun=> i0) by split=> [//|i j]; case: j.
    rewrite (rsum_insert (x := fun=> 1) one) ?rsum_const ?mulr1 //.
    split=> [i _|j _ /imgP j_off]; first by rewrite /x eqxx.
    by rewrite /x; case: eqP => // j_i0; case: j_off; exists 0%N.
  by rewrite /x eqxx subr_eq0 gt_eqF.
rewrite !mulf_eq0 (negPf w_neq0) (negPf x0) invr_eq0 sqrtr_eq0 leNgt.
rewrite ltr_paddr // (lt_le_trans _ (meansq_ge _ i0_lt)) // divr_gt0 ?ltr0n //.
by rewrite lt_def sqrf_eq0 x0 sqr_ge0.
Qed.

End LayerNorm.
