"use strict";
// The page on which one breaks a grower: GROWPROOF (faults.js) holds lines, faults, laws.
(() => {
  const root = document.getElementById("breaker");
  if (!root) return;
  const { lines, faults, laws } = GROWPROOF;
  const byName = new Map(faults.map((fault) => [fault.name, fault]));
  const ticked = new Set(
    decodeURIComponent(location.hash.slice(1)).split(",").filter((n) => byName.has(n)),
  );

  /** An element with attributes and children; text is never read as HTML. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  /** [faults that are seen, those that another ticked one hides → which]. */
  function judged() {
    const seen = [];
    const hidden = new Map();
    for (const fault of faults.filter((f) => ticked.has(f.name))) {
      const by = fault.beside.filter((name) => ticked.has(name));
      if (by.length) hidden.set(fault, by);
      else seen.push(fault);
    }
    return [seen, hidden];
  }

  const verdict = make("p", { class: "verdict", "aria-live": "polite" });
  const clear = make("button", { type: "button" }, "untick all");
  const show = make("button", { type: "button", class: "show" }, "show");
  const failing = make("div", { class: "failing" });
  const boxes = new Map();
  const counts = new Map();

  function box(fault) {
    const input = make("input", { type: "checkbox", id: `fault-${fault.name}` });
    input.addEventListener("change", () => {
      if (input.checked) ticked.add(fault.name);
      else ticked.delete(fault.name);
      update();
    });
    boxes.set(fault.name, input);
    return make(
      "label", { for: input.id }, input,
      make("span", {}, fault.says, " ", make("code", {}, fault.name)),
    );
  }

  function section(line) {
    const own = faults.filter((fault) => fault.line === line.name);
    const count = make("span", { class: "count" });
    counts.set(line.name, [count, own]);
    const details = make(
      "details", {},
      make("summary", {}, count, make("strong", {}, line.name), ` ${line.about}`),
      ...own.map(box),
    );
    details.open = own.some((fault) => ticked.has(fault.name));
    return details;
  }

  function cause(fault) {
    const rounding = fault.hidden.length
      ? make("p", { class: "small" }, `Hidden by rounding in ${fault.hidden.join(" and ")}.`)
      : "";
    return make(
      "div", { class: "cause" },
      make("p", {}, make("strong", {}, fault.says)),
      make("p", { class: "said" }, fault.message),
      make("p", { class: "small" }, `on ${fault.case}`), rounding,
      make("p", { class: "small" }, "again: ", make("code", {}, `growproof power ${fault.name}`)),
    );
  }

  function law(name, own) {
    const { says, promise, theorems } = laws[name];
    const proof = theorems.length
      ? make("p", { class: "small" }, "theorems behind its claim: ", theorems.join(", "))
      : "";
    return make(
      "section", {},
      make("h3", {}, make("code", {}, name), make("span", { class: "promise" }, promise)),
      make("p", {}, says), ...own.map(cause), proof,
    );
  }

  function unseen(fault, by) {
    const more = by.length > 1 ? ` and ${by.length - 1} more` : "";
    return make(
      "p", { class: "unseen" }, make("code", {}, fault.name),
      ` is not seen here beside ${by[0]}${more}: on its case ${fault.law} holds.`,
    );
  }

  function sentence(seen, hidden, names) {
    if (!ticked.size) return "Nothing is broken: every law holds.";
    if (!names.length) return "No law is known to fail: the faults hide one another.";
    const broken = [...new Set(names.map((name) => laws[name].promise))];
    const lost = hidden.size ? ` ${hidden.size} of ${ticked.size} faults not seen.` : "";
    const count = names.length === 1 ? "1 law fails" : `${names.length} laws fail`;
    return `${count}; broken: ${broken.join(", ")}.${lost}`;
  }

  function update() {
    const [seen, hidden] = judged();
    const names = Object.keys(laws).filter((n) => seen.some((fault) => fault.law === n));
    verdict.textContent = sentence(seen, hidden, names);
    root.classList.toggle("broken", names.length > 0);
    clear.hidden = !ticked.size;
    show.hidden = !names.length;
    for (const [name, input] of boxes) input.checked = ticked.has(name);
    for (const [element, own] of counts.values()) {
      const n = own.filter((fault) => ticked.has(fault.name)).length;
      element.textContent = n ? `${n}/${own.length}` : `${own.length}`;
      element.classList.toggle("some", n > 0);
    }
    failing.replaceChildren(
      ...names.map((name) => law(name, seen.filter((fault) => fault.law === name))),
      ...[...hidden].map(([fault, by]) => unseen(fault, by)),
    );
    const hash = ticked.size ? `#${[...ticked].join(",")}` : location.pathname;
    try {
      history.replaceState(null, "", hash);
    } catch {
      // a page that was opened from a file may not
    }
  }

  clear.addEventListener("click", () => {
    ticked.clear();
    update();
  });
  show.addEventListener("click", () => failing.scrollIntoView());
  root.replaceChildren(
    make("div", { class: "bar" }, verdict, show, clear),
    make("div", { class: "columns" }, make("div", { class: "lines" }, ...lines.map(section)), failing),
  );
  update();
})();
