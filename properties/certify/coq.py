"""A certificate as a Coq proof, for maps that are plain scatters."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .decision import Decision
from .recovery import ZERO, Entry
from .surds import ONE, Surd

PARTS = {
    "self_attn": {
        "q_proj": "(qry d) (qry d') (qmap (rep d) (lane d) (rep d') (lane d') e)",
        "k_proj": "(kv d) (kv d') (kvmap (lane d) (lane d') e)",
        "v_proj": "(kv d) (kv d') (kvmap (lane d) (lane d') e)",
        "o_proj": "(hid d) (hid d') ed",
    },
    "mlp": {
        "gate_proj": "units units' ef",
        "up_proj": "units units' ef",
        "down_proj": "(hid d) (hid d') ed",
    },
}


def coq_script(decision: Decision) -> str | None:
    """A proof that theorem 8 (proofs/Decoder.v) holds for the recovered map; None where
    it is no plain scatter with one scale on q and one on the norms.

    The tables say, entry by entry, what the runs showed. That they are scatterings along
    the proved axis maps is left to the kernel (`certificate.v` holds the checker).
    """
    old, new, steps = decision.old, decision.new, decision.steps
    scales: dict[str, set[Surd]] = {"norm": set(), "q_proj": set(), "": {ONE}}
    for name, cells in decision.entries.items():
        part = "norm" if name.endswith("norm.weight") else name.split(".")[-2]
        for cell in cells.flat:
            if (
                cell.terms is None
                or len(cell.terms) > 1
                or (cell.source == "" and cell is not ZERO)
            ):
                return None
            scales[part if part in scales else ""].update(cell.terms.values())
    squares = {part: [(x * x).rational for x in xs] for part, xs in scales.items()}
    shifted = any(
        step and (len(step), step[0][1]) != (2, step[-1][1]) for step in steps
    )
    if old.qk_norm or shifted or any(len(x) != 1 or not x[0] for x in squares.values()):
        return None

    def row(cells: Any) -> str:
        parts = [row(x) if isinstance(x, np.ndarray) else index(x) for x in cells]
        return "[:: " + "; ".join(parts) + "]"

    def index(entry: Entry) -> str:
        at = next(iter(entry.terms or {}), None)
        return "None" if at is None else f"Some {at if len(at) == 2 else at[0]}"

    def tables(i: int, where: str) -> str:
        lines: list[str] = []
        for part, axis in PARTS[where].items():
            name = f"model.layers.{i}.{where}.{part}"
            bias = decision.entries.get(name + ".bias")
            lines.append(row(decision.entries[name + ".weight"]))
            absent = f"(absent {axis})" if steps[i] else "[::]"
            lines.append(absent if bias is None else row(bias))
        return "\n  ".join(lines)

    def along(tap: str) -> str:
        lanes = enumerate(decision.lanes[tap])
        at = sorted((min(x), a) for a, x in lanes if isinstance(x, dict) and x)
        return "[:: " + "; ".join(str(a) for _, a in at) + "]"

    grown = range(new.layers)
    kept = [i for i in grown if steps[i]]
    lane, lane_proof = "id : nat -> nat", "apply: emb_id"
    if old.split_rotary:
        lane = "splitmap (lane d) (lane d')"
        lane_proof = "have [] := @rotary_halves_map (lane d) (lane d') isT isT isT"
    text = [
        f"Definition d := Dims {old.hidden} {old.groups} {old.repeats} {old.head_dim}.",
        f"Definition d' := Dims {new.hidden} {new.groups} {new.repeats} {new.head_dim}.",
        f"Definition vocab := {old.vocab}.",
        f"Definition units := {old.mlp}. Definition units' := {new.mlp}.",
        f"Definition ed := nth 0 {along('residual')}.",
        f"Definition ef := nth 0 {along(f'model.layers.{kept[0]}.mlp')}.",
        f"Definition e := {lane}.",
        f"Definition t_emb := {row(decision.entries['model.embed_tokens.weight'])}.",
    ]
    if not old.tied:
        text.append(f"Definition t_head := {row(decision.entries['lm_head.weight'])}.")
    for i in grown:
        text.append(f"Definition ta{i} := AttTables\n  {tables(i, 'self_attn')}.")
        text.append(f"Definition tf{i} := FfTables\n  {tables(i, 'mlp')}.")
    source = [f"l{steps[i][0][1]}" if steps[i] else f"s{i}" for i in grown]
    built: list[str] = []
    facts: list[str] = []
    commuting: list[str] = []
    proofs: list[str] = []
    for i, x in enumerate(source):
        norms = f"(n1' {i}) (n2' {i})" if steps[i] else f"(n1 {x}) (n2 {x})"
        built.append(
            f"Layer {norms} (grow_att c ta{i} (att {x})) (grow_ff tf{i} (ff {x}))"
        )
        if steps[i]:
            facts.append(f"Lemma att{i} : att_ok d d' ed e ta{i}.")
            facts.append(f"Lemma ff{i} : ff_ok d d' units units' ed ef tf{i}.")
            proofs.append(
                "apply: deeper_grown; first exact: "
                f"(grown ta{i} tf{i} {x} _ _ att{i} ff{i} n1_{i} n2_{i})."
            )
            commuting += [
                f"{n}_{i} : commutes ({n} {x}) ({n}' {i})" for n in ("n1", "n2")
            ]
        else:
            facts.append(f"Lemma silent{i} : silent_ok ta{i} tf{i}.")
            proofs.append(
                f"apply: deeper_new; first exact: (silent_okP c m' rot' mask par {x} softmax T silent{i})."
            )
    q, n = squares["q_proj"][0] or 0, squares["norm"][0] or 0
    eps, layers = decision.eps or Fraction(1), [f"l{k}" for k in range(old.layers)]
    template = Path(__file__).with_name("certificate.v.in").read_text("utf-8")
    return template.format(
        title=f"{old} to {new}",
        tables="\n".join(text),
        lane_proof=lane_proof,
        facts="\n".join(f"{fact} Proof. by vm_compute. Qed." for fact in facts),
        layers=" ".join(layers + [x for x in source if x[0] == "s"]),
        old_layers="; ".join(layers),
        new_layers=";\n    ".join(built),
        commuting="".join(f"Hypothesis {x}.\n" for x in commuting),
        proofs="\n".join(f"  {proof}" for proof in proofs),
        head="emb_w" if old.tied else "head_w",
        read_head="t_emb" if old.tied else "t_head",
        query=f"{q.numerator} * lane d = {q.denominator} * lane d'",
        norm=f"{n.numerator} * {new.norm_size} = {n.denominator} * {old.norm_size}",
        eps=f"{eps.numerator} * {new.norm_size} = {eps.denominator} * {old.norm_size}",
    )
