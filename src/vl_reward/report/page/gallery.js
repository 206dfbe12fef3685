"use strict";
// Rows are drawn as one scrolls. Data only ever becomes text: textContent, never markup.
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const form = document.getElementById("filters"), list = document.getElementById("rows");
  const space = document.getElementById("space"), detail = document.getElementById("detail");
  const full = document.getElementById("full"), drawn = new Map();
  let found = [], at = 0, height = 124;

  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const short = (text) => (text.length > 280 ? text.slice(0, 280) + "…" : text);
  const score = (value) => (typeof value === "number" ? value.toFixed(3) : "no score");
  const label = (row, place, key) => [key, score(row.scores[place]), row.words[place]].filter(Boolean).join(" · ");

  function pictures(row) {
    const box = element("div");
    const add = (place, to) => {
      const image = element("img");
      image.src = data.pictures[place];
      image.alt = "";
      image.loading = "lazy";
      to.append(image);
    };
    for (const place of row.pictures) add(place, box);
    for (const [place, frames] of row.videos) {
      const film = element("span", "film");
      add(place, film);
      film.append(element("span", "tag", "▶ " + frames.toLocaleString("en") + " frames"));
      box.append(film);
    }
    if (row.unreadable_pictures) box.append(element("span", "tag wrong", row.unreadable_pictures + " unreadable"));
    return box;
  }

  function response(row, place, key) {
    const box = element("div");
    box.append(element("span", "tag " + row.words[place], label(row, place, key)));
    box.append(element("bdi", "", short(row[key] || "")));
    return box;
  }

  function draw(place) {
    const row = found[place], box = element("div", "row");
    box.style.top = place * height + "px";
    box.setAttribute("role", "option");
    const asked = element("div");
    asked.append(element("bdi", "", short(row.prompt)));
    const verdict = row.correct === null ? "undecided" : row.correct ? "correct" : "error";
    const facts = element("div");
    facts.append(element("span", row.correct === null ? "" : row.correct ? "right" : "wrong", verdict));
    facts.append(element("span", "tag", "margin " + row.margin.toFixed(3)), element("bdi", "tag", row.source));
    facts.append(element("bdi", "tag", row.kind + " · " + row.run));
    box.append(pictures(row), asked, response(row, 0, "chosen"), response(row, 1, "rejected"), facts);
    box.addEventListener("click", () => { choose(place); open(); });
    return box;
  }

  function paint() {
    const first = Math.max(0, Math.floor(list.scrollTop / height) - 4);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 4);
    for (const [place, box] of drawn) if (place < first || place >= last) { box.remove(); drawn.delete(place); }
    for (let place = first; place < last; place++) {
      if (!drawn.has(place)) { const box = draw(place); drawn.set(place, box); space.append(box); }
      drawn.get(place).classList.toggle("chosen", place === at);
    }
  }

  function choose(place) {
    at = Math.max(0, Math.min(found.length - 1, place));
    const top = at * height;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
    paint();
  }

  function open() {
    if (!found.length) return;
    const row = found[at];
    full.replaceChildren(pictures(row));
    const names = { chosen: label(row, 0, "chosen"), rejected: label(row, 1, "rejected") };
    for (const key of ["id", "source", "prompt", "chosen", "rejected"]) {
      const text = element("pre");
      text.append(element("bdi", "", row[key] || ""));
      full.append(element("strong", "", names[key] || key), text);
    }
    if (!detail.open) detail.showModal();
  }

  function filter() {
    const want = Object.fromEntries(new FormData(form));
    found = data.rows.filter((row) =>
      ["run", "kind", "source"].every((key) => !want[key] || row[key] === want[key]) &&
      (!want.correct || String(row.correct) === want.correct) &&
      (want.low === "" || row.margin >= Number(want.low)) && (want.high === "" || row.margin <= Number(want.high)));
    const size = (row) => Math.abs(row.margin);
    const orders = {
      small: (a, b) => size(a) - size(b),
      large: (a, b) => size(b) - size(a),
      errors: (a, b) => (a.correct !== false) - (b.correct !== false) || size(b) - size(a),
    };
    found.sort(orders[want.sort]);
    restart();
  }

  function restart() {
    height = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
    for (const box of drawn.values()) box.remove();
    drawn.clear();
    space.style.height = found.length * height + "px";
    document.getElementById("count").textContent = found.length.toLocaleString("en") + " pairs";
    list.scrollTop = 0;
    at = 0;
    paint();
  }

  for (const key of ["run", "kind", "source"]) {
    const all = element("option", "", "all");
    all.value = "";
    form.elements[key].append(all);
    for (const value of new Set(data.rows.map((row) => row[key]))) {
      const option = element("option", "", value);
      option.value = value;
      form.elements[key].append(option);
    }
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  list.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  window.addEventListener("resize", restart);
  document.addEventListener("keydown", (event) => {
    if (/^(INPUT|SELECT)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey) return;
    // The arrows scroll the page, unless the gallery has the focus.
    const arrows = detail.open || document.activeElement === list;
    const step = { j: 1, k: -1, ...(arrows && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    if (step) { event.preventDefault(); choose(at + step); if (detail.open) open(); }
    else if (event.key === "Enter" && document.activeElement === list) { event.preventDefault(); open(); }
  });
  filter();
})();
