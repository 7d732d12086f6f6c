// A tree of sentences drawn as one: a column a depth, an edge from each sentence to those that the search tried behind
// it. One node is in the order of Tab; the arrows go from there along the tree.
(() => {
  const { byId, element, decimals, counted } = page;
  const COLUMN = 216, GAP = 60, ROW_GAP = 8, FAMILY_GAP = 18, NARROWEST = 620;
  const SVG = "http://www.w3.org/2000/svg";
  const tree = byId("tree"), scroll = byId("tree-scroll"), about = byId("tree-about"), details = byId("tree-node");
  const numberField = byId("tree-number"), pruned = byId("tree-pruned"), follow = byId("tree-follow");
  let shown = -1, asked = 0, nodes = [], hasBegun = false;
  const oneDecimal = (value) => decimals(value, 1);
  const num = () => page.facts.trees.num;

  // ---- what a node is --------------------------------------------------------------------------------------------------

  const kindOf = (node) => (node.final ? "final" : node.kept ? "kept" : "pruned");
  const textOf = (node) => node.text.trim() || (node.final ? "(end of the answer)" : "(no words)");
  const KINDS = { kept: "kept", final: "the answer ends here", pruned: "pruned" };

  function prepare(found) {
    const byNumber = new Map(found.nodes.map((node) => [node.node, node]));
    const chosen = new Set(found.chosen ?? []), rejected = new Set(found.rejected ?? []);
    for (const node of found.nodes) {
      node.up = byNumber.get(node.parent) ?? null;
      node.depth = node.up ? node.up.depth + 1 : 0;
      node.children = [];
      node.kind = kindOf(node);
      node.sides = [chosen.has(node.node) ? "chosen" : "", rejected.has(node.node) ? "rejected" : ""].filter(Boolean);
      if (node.up) node.up.children.push(node);
    }
    const rank = { kept: 0, final: 1, pruned: 2 };
    const byReward = (a, b) => rank[a.kind] - rank[b.kind] || (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || a.node - b.node;
    for (const node of found.nodes) node.children.sort(byReward);
    const roots = found.nodes.filter((node) => !node.up).sort(byReward);
    const ordered = [];
    const visit = (node) => { ordered.push(node); node.children.forEach(visit); };
    roots.forEach(visit);
    return ordered;
  }

  function words(node) {
    const parts = [KINDS[node.kind], ...node.sides.map((side) => "of the " + side + " answer")];
    if (node.role) parts.push(node.role);
    return parts.join(", ");
  }

  function box(node) {
    const made = element("div", ["node", node.kind, ...node.sides].join(" "));
    if (Number.isInteger(node.colour)) made.classList.add("c" + node.colour);
    made.setAttribute("role", "treeitem");
    made.setAttribute("aria-level", node.depth + 1);
    const family = node.up ? node.up.children : nodes.filter((other) => !other.up);
    made.setAttribute("aria-setsize", family.length);
    made.setAttribute("aria-posinset", family.indexOf(node) + 1);
    made.setAttribute("aria-label", `${textOf(node)} Reward ${oneDecimal(node.reward)}. ${words(node)}.`);
    made.setAttribute("aria-selected", "false");
    made.style.setProperty("--depth", node.depth);
    made.tabIndex = -1;
    const scores = element("div", "scores");
    scores.append(element("strong", "", oneDecimal(node.reward)), element("span", "", node.sides.length ? node.sides.join(", ") : KINDS[node.kind]));
    made.append(element("div", "text", textOf(node)), scores);
    made.node = node;
    node.box = made;
    return made;
  }

  // ---- where it stands ---------------------------------------------------------------------------------------------------

  function lay() {
    if (!nodes.length) return;
    const isNarrow = scroll.clientWidth < NARROWEST;
    tree.classList.toggle("outline", isNarrow);
    const visible = nodes.filter((node) => !node.box.hidden);
    const edges = tree.querySelector("svg");
    if (isNarrow) { tree.style.height = tree.style.width = ""; return; }
    const heights = new Map(visible.map((node) => [node, node.box.offsetHeight]));
    const columns = [];
    for (const node of visible) (columns[node.depth] ??= []).push(node);
    let height = 0;
    columns.forEach((column, depth) => {
      let bottom = -FAMILY_GAP;
      for (let at = 0; at < column.length;) {
        const family = [];
        while (at < column.length && (!family.length || column[at].up === family[0].up)) family.push(column[at++]);
        const tall = family.reduce((sum, node) => sum + heights.get(node) + ROW_GAP, -ROW_GAP);
        const up = family[0].up;
        // Beside the sentence that they follow, unless others are there already.
        let top = Math.max(bottom + FAMILY_GAP, up ? up.top + heights.get(up) / 2 - tall / 2 : 0);
        for (const node of family) {
          node.top = top;
          node.box.style.left = depth * (COLUMN + GAP) + "px";
          node.box.style.top = top + "px";
          top += heights.get(node) + ROW_GAP;
        }
        bottom = top - ROW_GAP;
      }
      height = Math.max(height, bottom);
    });
    const width = columns.length * (COLUMN + GAP) - GAP;
    tree.style.height = height + "px";
    tree.style.width = width + "px";
    edges.setAttribute("width", width);
    edges.setAttribute("height", height);
    // The paths of the two answers last, so that they lie on top.
    const drawn = visible.filter((node) => node.up).sort((a, b) => a.sides.length - b.sides.length);
    edges.replaceChildren(...drawn.map((node) => {
      const line = document.createElementNS(SVG, "path");
      const x = node.depth * (COLUMN + GAP), from = x - GAP, y = node.top + heights.get(node) / 2;
      const start = node.up.top + heights.get(node.up) / 2;
      line.setAttribute("class", ["edge", node.kind, ...node.sides].join(" "));
      line.setAttribute("d", `M${from} ${start}C${from + GAP / 2} ${start} ${x - GAP / 2} ${y} ${x} ${y}`);
      return line;
    }));
  }

  function prune() {
    for (const node of nodes) node.box.hidden = !pruned.checked && node.kind === "pruned";
    lay();
  }

  // ---- one tree ----------------------------------------------------------------------------------------------------------

  function draw(found) {
    nodes = prepare(found);
    const edges = document.createElementNS(SVG, "svg");
    edges.setAttribute("aria-hidden", "true");
    tree.setAttribute("role", "tree");
    tree.setAttribute("aria-label", "Tree of sentences for " + found.id + ": right to what follows a sentence, left to what it follows, up and down between alternatives");
    tree.replaceChildren(edges, ...nodes.map(box));
    const words_ = element("div");
    const counts = { kept: 0, final: 0, pruned: 0 };
    for (const node of nodes) counts[node.kind]++;
    const left = found.left_out ? `, ${counted(found.left_out)} more are left out` : "";
    words_.append(element("h3", "", found.prompt || "(no question)"),
      element("p", "muted small", `${found.place} · ${found.id} · policy version ${found.version ?? "–"}`),
      element("p", "muted small", `${counted(nodes.length)} sentences${left}: ${counts.kept} kept, ${counts.pruned} pruned, ${counts.final} that end an answer`));
    about.replaceChildren(page.picture(found), words_);
    details.replaceChildren(element("p", "muted", "Move to a sentence, or point at it, for all of its words and scores."));
    if (nodes.length) nodes[0].box.tabIndex = 0;
    prune();
    scroll.scrollTo(0, 0);
  }

  function tell(node) {
    const scores = [["reward", node.reward, 1], ["image score", node.image, 1], ["self score", node.self, 1], ["log-prob", node.logp, 2]]
      .map(([name, value, places]) => `${name} ${decimals(value, places)}`);
    if (node.tokens) scores.push(`${node.tokens} tokens`);
    for (const [name, value] of Object.entries(node.scores ?? {})) scores.push(`${name} ${decimals(value, 2)}`);
    const lines = [element("p", "", textOf(node)), element("p", "muted", `${scores.join(" · ")} · ${words(node)}`)];
    if (node.asked) lines.push(element("p", "muted small", "asked: " + node.asked));
    details.replaceChildren(...lines);
  }

  async function show(number, { moves = false } = {}) {
    const mine = ++asked;
    number = Math.min(num() - 1, Math.max(0, number));
    let found;
    try {
      found = await page.source.tree(number);
    } catch (error) {
      found = null;
      if (mine === asked) byId("tree-said").textContent = "This tree cannot be had: " + error.message;
    }
    if (mine !== asked) return;
    shown = number;
    told();
    if (found && found.nodes) {
      page.still(() => draw(found));
      byId("tree-said").textContent = `Tree ${number + 1}: ${found.id}, ${nodes.length} sentences.`;
    } else {
      tree.replaceChildren();
      nodes = [];
      about.replaceChildren(element("p", "muted", "This tree cannot be read."));
      details.replaceChildren();
    }
    if (moves) {
      byId("trees").scrollIntoView({ block: "start" });
      (nodes[0] ? nodes[0].box : numberField).focus({ preventScroll: true });
    }
  }

  /** Let the controls say which tree it is, and of how many. */
  function told() {
    const { num, of } = page.facts.trees;
    numberField.value = shown + 1;
    numberField.max = num;
    byId("tree-of").textContent = `of ${counted(num)}` + (of > num ? ` on this page; the run has ${counted(of)}` : "");
    page.leads("tree-previous", shown > 0);
    page.leads("tree-next", shown < num - 1);
    page.leads("tree-newest", shown < num - 1);
    byId("trees-lead").textContent = page.facts.live
      ? "What the search tried, a tree a prompt, sentences as nodes: the newest first. A tree comes when its unit of prompts is done."
      : "What the search tried, a tree a prompt, sentences as nodes: those of the most typical pairs of each round, and the newest.";
  }

  function goTo(number) {
    if (follow) follow.checked = false;
    if (number >= 0 && number < num() && number !== shown) show(number);
  }
  byId("tree-newest").addEventListener("click", () => goTo(num() - 1));
  byId("tree-next").addEventListener("click", () => goTo(shown + 1));
  byId("tree-previous").addEventListener("click", () => goTo(shown - 1));
  numberField.addEventListener("change", () => { if (numberField.valueAsNumber >= 1) goTo(numberField.valueAsNumber - 1); });
  pruned.addEventListener("change", prune);
  if (follow) follow.addEventListener("change", () => { if (follow.checked) show(num() - 1); });
  page.showTree = (number, how) => { if (follow) follow.checked = false; return show(number, how); };

  // ---- moving in it ------------------------------------------------------------------------------------------------------

  function focus(node) {
    for (const other of nodes) {
      other.box.tabIndex = other === node ? 0 : -1;
      other.box.setAttribute("aria-selected", String(other === node));
    }
    node.box.focus({ preventScroll: true });
    node.box.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  tree.addEventListener("keydown", (event) => {
    const node = document.activeElement && document.activeElement.node;
    if (!node || event.altKey || event.ctrlKey || event.metaKey) return;
    const visible = nodes.filter((other) => !other.box.hidden);
    const column = visible.filter((other) => other.depth === node.depth).sort((a, b) => a.top - b.top);
    const isOutline = tree.classList.contains("outline");
    const line = isOutline ? visible : column, at = line.indexOf(node);
    const to = {
      ArrowRight: node.children.find((child) => !child.box.hidden), ArrowLeft: node.up,
      ArrowDown: line[at + 1], ArrowUp: line[at - 1], Home: visible[0], End: visible[visible.length - 1],
    };
    if (!(event.key in to)) return;
    event.preventDefault();
    if (to[event.key]) focus(to[event.key]);
  });
  tree.addEventListener("focusin", (event) => { if (event.target.node) tell(event.target.node); });
  tree.addEventListener("mouseover", (event) => {
    const over = event.target.closest(".node");
    if (over) tell(over.node);
  });
  tree.addEventListener("click", (event) => {
    const on = event.target.closest(".node");
    if (on) focus(on.node);
  });
  new ResizeObserver(() => lay()).observe(scroll);

  // ---- beginning, and following a run that goes on -------------------------------------------------------------------------

  function heard() {
    byId("trees-shown").hidden = !num();
    if (!num()) {
      byId("trees-lead").textContent = "There are no trees" + (page.facts.live ? " yet: they come with the first unit of prompts that is rolled out." : " in this run.");
      return;
    }
    if (!hasBegun) {
      hasBegun = true;
      shown = num() - 1;
      told();
      new IntersectionObserver((entries, observer) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        observer.disconnect();
        show(page.facts.live ? num() - 1 : 0);
      }, { rootMargin: "600px" }).observe(byId("trees"));
    } else if (follow && follow.checked && !tree.contains(document.activeElement)) {
      show(num() - 1);
    } else {
      told();
    }
  }

  page.listeners.push(heard);
  heard();
})();
