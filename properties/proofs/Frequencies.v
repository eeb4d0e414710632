From Coq Require Import Reals Lra.

Open Scope R_scope.

(** MAIN 4 frequencies_kept: With theta' = theta^(K'/K), pair k of a full rotary
    head of K' lanes turns as fast as pair k of the old head of K lanes. *)
Theorem frequencies_kept (theta K K' k : R) : 0 < K -> 0 < K' ->
  Rpower (Rpower theta (K' / K)) (- (2 * k) / K') = Rpower theta (- (2 * k) / K).
Proof. intros K_gt0 K'_gt0; rewrite Rpower_mult; f_equal; field; lra. Qed.

(** MAIN 4 frequencies_between: With theta kept, pair m k of a full rotary head of
    m K lanes turns as fast as pair k of the old head of K lanes. *)
Theorem frequencies_between (theta K m k : R) : 0 < K -> 0 < m ->
  Rpower theta (- (2 * (m * k)) / (m * K)) = Rpower theta (- (2 * k) / K).
Proof. intros K_gt0 m_gt0; f_equal; field; lra. Qed.
