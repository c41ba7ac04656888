"use strict";
// Filters the module tree, copies code, opens the rule that a link points at. The page says everything without it.
(() => {
  for (const button of document.querySelectorAll(".copy")) {
    const code = button.parentElement.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.matches("details")) target.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();

  const tree = document.getElementById("tree");
  if (!tree) return;
  const input = document.getElementById("search");
  const contradicting = document.getElementById("only-off");
  const found = document.getElementById("found");
  const nodes = [...tree.querySelectorAll("details")];
  const roots = new Set(nodes.filter((node) => node.parentElement === tree));
  // Opening thousands of modules at once helps nobody and costs a second of layout.
  const MOST_OPENED = 300;
  let before = null;
  let entries = null;

  // A row may stand for many modules: every path that it stands for, with the tensors below it, can be searched.
  const read = () => {
    const paths = new Map();
    return nodes.map((node) => {
      const name = node.querySelector(":scope > summary b").textContent;
      const names = node.dataset.names ? node.dataset.names.split("\n") : [name];
      const type = node.querySelector(":scope > summary em").textContent.toLowerCase();
      const leaves = [...node.querySelectorAll(":scope > ul .name")].flatMap((leaf) => leaf.textContent.split(", "));
      const above = roots.has(node) ? null : paths.get(node.parentElement.closest("details"));
      const own = above === null ? [""] : above.flatMap((path) => names.map((each) => (path ? `${path}.${each}` : each)));
      paths.set(node, own);
      const root = above === null ? name : "";
      return own.map((path) => [
        path || root, type, ...leaves.map((leaf) => (path ? `${path}.${leaf}` : leaf)),
      ].join("\n").toLowerCase());
    });
  };

  const test = (query) => {
    const terms = query.split(/\s+/).map((term) =>
      new RegExp(term.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*+/g, ".*")));
    return (text) => terms.every((term) => term.test(text));
  };

  const filter = () => {
    const query = input.value.trim().toLowerCase();
    if (!query && !contradicting.checked) {
      for (const node of nodes) node.hidden = false;
      if (before) nodes.forEach((node, i) => { node.open = before[i]; });
      before = null;
      found.textContent = "";
      return;
    }
    before ??= nodes.map((node) => node.open);
    entries ??= read();
    const matches = query ? test(query) : () => true;
    const shown = new Set(roots);
    let count = 0;
    let total = 0;
    nodes.forEach((node, i) => {
      total += entries[i].length;
      if (contradicting.checked && !node.classList.contains("off")) return;
      const number = entries[i].filter(matches).length;
      if (!number) return;
      count += number;
      for (let each = node; each && !shown.has(each); each = each.parentElement.closest("details")) shown.add(each);
    });
    const open = shown.size <= MOST_OPENED;
    nodes.forEach((node, i) => {
      node.hidden = !shown.has(node);
      node.open = roots.has(node) || (open ? shown.has(node) : before[i]);
    });
    const words = `${count.toLocaleString("en")} ${count === 1 ? "module" : "modules"}`;
    const none = query ? `No module matches “${input.value.trim()}”.` : "Nothing contradicts what was meant.";
    found.textContent = count === 0
      ? none
      : `${words} of ${total.toLocaleString("en")}${open ? "" : "; open one to see those below it"}`;
  };

  let due = 0;
  const later = () => {
    cancelAnimationFrame(due);
    due = requestAnimationFrame(filter);
  };
  input.addEventListener("input", later);
  contradicting.addEventListener("change", later);
  input.form.addEventListener("submit", (event) => event.preventDefault());
  input.form.hidden = false;
})();
