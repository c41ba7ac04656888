// Filters the module tree, and walks it by arrow keys. The page says everything without it.
(() => {
  const tree = document.getElementById("tree");
  if (!tree) return;
  const input = document.getElementById("search");
  const contradicting = document.getElementById("only-off");
  const found = document.getElementById("found");
  const { one, many, none, nothing } = tree.dataset;
  // Opening thousands of rows at once helps nobody and costs a second of layout.
  const MOST_OPENED = 200;

  const nodes = [...tree.querySelectorAll("details")];
  const numbers = new Map(nodes.map((node, i) => [node, i]));
  const above = nodes.map((node) => numbers.get(node.parentElement.closest("details")) ?? -1);
  // Modules stand in the order of the page: all that is below one follows it, up to this number.
  const ends = nodes.map((_, i) => i);
  for (let i = nodes.length - 1; i >= 0; i -= 1) {
    if (above[i] >= 0) ends[above[i]] = Math.max(ends[above[i]], ends[i]);
  }
  let before = null;
  let entries = null;

  // Where every entry has its path, entries are searched.
  const readLeaves = () => nodes.map((node) =>
    [...node.querySelectorAll(":scope > ul > [data-path]")].map((item) => ({ item, text: item.dataset.path.toLowerCase() })));

  // A row may stand for many modules: every path that it stands for, with the tensors below it, can be searched.
  const readModules = () => {
    const paths = [];
    return nodes.map((node, i) => {
      const name = node.querySelector(":scope > summary b").textContent;
      const names = node.dataset.names ? node.dataset.names.split("\n") : [name];
      const type = node.querySelector(":scope > summary em").textContent.toLowerCase();
      const leaves = [...node.querySelectorAll(":scope > ul .name")].flatMap((leaf) => leaf.textContent.split(", "));
      const root = above[i] < 0;
      paths[i] = root
        ? [""]
        : paths[above[i]].flatMap((path) => names.map((each) => (path ? `${path}.${each}` : each)));
      return paths[i].map((path) => ({
        item: null,
        text: [path || (root ? name : ""), type, ...leaves.map((leaf) => (path ? `${path}.${leaf}` : leaf))]
          .join("\n").toLowerCase(),
      }));
    });
  };

  const test = (query) => {
    const terms = query.split(/\s+/).map((term) => (term.includes("*")
      ? new RegExp(term.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*+/g, ".*"))
      : { test: (text) => text.includes(term) }));
    return (text) => terms.every((term) => term.test(text));
  };

  // Writing an attribute makes the browser look again at all below it, also where nothing changes.
  const hide = (item, hidden) => { if (item.hidden !== hidden) item.hidden = hidden; };
  const unfold = (node, open) => { if (node.open !== open) node.open = open; };

  const giveBack = () => {
    if (before) {
      nodes.forEach((node, i) => {
        hide(node, false);
        unfold(node, before[i]);
      });
      for (const item of tree.querySelectorAll("[data-path][hidden]")) item.hidden = false;
    }
    before = null;
    found.textContent = "";
  };

  const filter = () => {
    const query = input.value.trim().toLowerCase();
    if (!query && !contradicting?.checked) {
      giveBack();
      return;
    }
    before ??= nodes.map((node) => node.open);
    entries ??= tree.querySelector("[data-path]") ? readLeaves() : readModules();
    const matches = query ? test(query) : () => true;
    const shown = new Uint8Array(nodes.length);
    const kept = new Map();
    let rows = 0;
    let count = 0;
    let total = 0;
    nodes.forEach((node, i) => {
      total += entries[i].length;
      if (above[i] < 0) shown[i] = 1;
      if (contradicting?.checked && !node.classList.contains("off")) return;
      const own = entries[i].filter((entry) => matches(entry.text));
      if (!own.length) return;
      kept.set(i, new Set(own));
      count += own.length;
      rows += own[0].item ? own.length : 0;
      for (let each = i; each >= 0 && (each === i || !shown[each]); each = above[each]) {
        rows += 1 - shown[each];
        shown[each] = 1;
      }
    });
    const open = rows <= MOST_OPENED;
    for (let i = 0; i < nodes.length; i += 1) {
      hide(nodes[i], !shown[i]);
      if (!shown[i]) {
        i = ends[i];
        continue;
      }
      unfold(nodes[i], above[i] < 0 || open || before[i]);
      for (const entry of entries[i]) if (entry.item) hide(entry.item, !kept.get(i)?.has(entry));
    }
    const words = `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
    found.textContent = count
      ? `${words} of ${total.toLocaleString("en")}${open ? "" : "; open a module to see its own"}`
      : query ? `${none} “${input.value.trim()}”.` : nothing;
  };

  const below = (node) => [...node.children].filter((child) => child.matches("details:not([hidden])"));
  const beside = (node, way) => {
    let next = node[way];
    while (next && !next.matches("details:not([hidden])")) next = next[way];
    return next;
  };
  const up = (node) => node.parentElement.closest("details");
  const lastOf = (node) => {
    const inner = node.open ? below(node).at(-1) : null;
    return inner ? lastOf(inner) : node;
  };
  const after = (node) => {
    for (let each = node; each; each = up(each)) {
      const next = beside(each, "nextElementSibling");
      if (next) return next;
    }
    return null;
  };
  const keys = {
    ArrowDown: (node) => (node.open && below(node)[0]) || after(node),
    ArrowUp: (node) => {
      const previous = beside(node, "previousElementSibling");
      return previous ? lastOf(previous) : up(node);
    },
    ArrowRight: (node) => {
      if (node.open) return below(node)[0];
      node.open = true;
      return null;
    },
    ArrowLeft: (node) => {
      if (!node.open) return up(node);
      node.open = false;
      return null;
    },
    Home: () => below(tree)[0],
    End: () => lastOf(below(tree).at(-1)),
  };
  tree.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (!event.target.matches("summary")) return;
    event.preventDefault();
    keys[event.key](event.target.parentElement)?.querySelector(":scope > summary").focus();
  });

  let due = 0;
  const later = () => {
    cancelAnimationFrame(due);
    due = requestAnimationFrame(filter);
  };
  input.addEventListener("input", later);
  contradicting?.addEventListener("change", later);
  input.form.addEventListener("submit", (event) => event.preventDefault());
  for (const item of document.querySelectorAll("[data-scripted]")) item.hidden = false;
})();
