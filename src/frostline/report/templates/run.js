"use strict";
// Filters the module tree by path. The page says everything without it.
(() => {
  const tree = document.getElementById("tree");
  const input = document.getElementById("search");
  const found = document.getElementById("found");
  const nodes = [...tree.querySelectorAll("details")];
  const root = nodes[0];
  const leaves = [...tree.querySelectorAll("[data-path]")].map((item) => ({
    item,
    node: item.closest("details"),
    path: item.dataset.path.toLowerCase(),
  }));
  // Opening thousands of modules at once helps nobody and costs a second of layout.
  const MOST_OPENED = 300;
  let before = null;

  const test = (query) => {
    const terms = query.split(/\s+/).map((term) =>
      new RegExp(term.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*+/g, ".*")));
    return (path) => terms.every((term) => term.test(path));
  };

  const filter = () => {
    const query = input.value.trim().toLowerCase();
    if (!query) {
      for (const leaf of leaves) leaf.item.hidden = false;
      for (const node of nodes) node.hidden = false;
      if (before) nodes.forEach((node, i) => { node.open = before[i]; });
      before = null;
      found.textContent = "";
      return;
    }
    before ??= nodes.map((node) => node.open);
    const matches = test(query);
    const shown = new Set([root]);
    let count = 0;
    for (const leaf of leaves) {
      const match = matches(leaf.path);
      leaf.item.hidden = !match;
      if (!match) continue;
      count += 1;
      for (let node = leaf.node; node && !shown.has(node); node = node.parentElement.closest("details")) {
        shown.add(node);
      }
    }
    const open = count <= MOST_OPENED;
    nodes.forEach((node, i) => {
      node.hidden = !shown.has(node);
      node.open = node === root || (open ? shown.has(node) : before[i]);
    });
    const entries = count === 1 ? "1 entry" : `${count.toLocaleString("en")} entries`;
    found.textContent = count === 0
      ? `No path contains “${input.value.trim()}”.`
      : `${entries} of ${leaves.length.toLocaleString("en")}${open ? "" : "; open a module to see its own"}`;
  };

  let due = 0;
  input.addEventListener("input", () => {
    cancelAnimationFrame(due);
    due = requestAnimationFrame(filter);
  });
  input.form.addEventListener("submit", (event) => event.preventDefault());
  input.parentElement.hidden = false;
})();
