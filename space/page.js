// What the page does in the browser: the address that others can open, names for screen readers, and the game.

const jetAddress = {
  // The tab comes from the address, and a chosen tab goes into it, so that Back returns to the tab before.
  names: ["model", "images", "temperature", "seed", "label"],

  query: () => new URLSearchParams(location.search),

  put(query, method) {
    history[method](null, "", `${location.pathname}?${query}${location.hash}`);
  },

  tabs: () => [...document.querySelectorAll("button[role=tab]")],

  slug: (tab) => tab.textContent.trim().toLowerCase().replace(/[^a-z0-9]+/g, "-"),

  // Select the tab of the address. Return whether it is selected.
  openTab() {
    const tabs = this.tabs();
    const wanted = this.query().get("tab");
    const tab = tabs.find((tab) => this.slug(tab) === wanted) ?? tabs[0];
    if (!tab) return false;
    if (tab.getAttribute("aria-selected") === "true") return true;
    this.silent = true;
    tab.click();
    this.silent = false;
    return false;
  },

  // An earlier address may have the values of that time, which the page no longer shows.
  goBack() {
    this.openTab();
    if (this.values) this.write(this.values);
  },

  choose(event) {
    const tab = event.target.closest?.("button[role=tab]");
    if (!tab || this.silent) return;
    const query = this.query();
    if ((query.get("tab") ?? this.slug(this.tabs()[0])) === this.slug(tab)) return;
    query.set("tab", this.slug(tab));
    this.put(query, "pushState");
  },

  // Values of the tab of samples. Numbers that are none are ignored, and the server checks all of them.
  read(values, models) {
    const query = this.query();
    return values.map((value, i) => {
      const given = query.get(this.names[i]);
      if (given === null) return value;
      if (this.names[i] === "model") return models.includes(given) ? given : value;
      return given.trim() !== "" && Number.isFinite(Number(given)) ? Number(given) : value;
    });
  },

  write(values) {
    this.values = values;
    const query = this.query();
    this.names.forEach((name, i) => query.set(name, values[i] ?? ""));
    this.put(query, "replaceState");
  },
};

const jetResults = {
  // For each function, the inputs that its last results belong to, without those that move in small steps.
  inputs: {},

  // Files are compared by their paths.
  read: (places, values) => JSON.stringify(places.map((place) => values[place]?.path ?? values[place])),

  start(name, places, values) {
    this.inputs[name] = this.read(places, values);
    return values;
  },

  isOld(name, places, values) {
    return name in this.inputs && this.inputs[name] !== this.read(places, values);
  },
};

const jetGame = {
  // Ten pairs of pictures, and the score, in an element with the pairs as JSON.
  start(element) {
    const pairs = JSON.parse(element.dataset.pairs);
    element.dataset.started = "true";
    let round = 0;
    let points = 0;
    const add = (parent, tag, text = "", properties = {}) => {
      const child = Object.assign(document.createElement(tag), properties);
      child.textContent = text;
      parent.append(child);
      return child;
    };
    const show = () => {
      element.replaceChildren();
      if (round === pairs.length) {
        add(element, "p", `You were right in ${points} of ${pairs.length} pairs.`, { role: "status" });
        add(element, "button", "Play again", { type: "button" }).onclick = () => {
          round = points = 0;
          show();
        };
        return;
      }
      const pair = pairs[round];
      add(element, "p", `Pair ${round + 1} of ${pairs.length}. Right so far: ${points}.`);
      const row = add(element, "div", "", { className: "jet-pair" });
      const status = add(element, "p", "", { role: "status" });
      const buttons = pair.map((picture, i) => {
        const button = add(row, "button", "", { type: "button" });
        add(button, "img", "", { src: picture.source, alt: "" });
        add(button, "span", picture.name);
        button.onclick = () => answer(i);
        return button;
      });
      const answer = (chosen) => {
        const best = pair[0].bits <= pair[1].bits ? 0 : 1;
        if (chosen === best) points += 1;
        buttons.forEach((button, i) => {
          button.disabled = true;
          button.classList.toggle("jet-fewer", i === best);
          add(button, "span", `${pair[i].bits.toFixed(2)} bits per dimension`);
        });
        status.textContent = `${chosen === best ? "Right" : "Wrong"}: ${pair[best].name} takes fewer bits.`;
        round += 1;
        const next = add(element, "button", round === pairs.length ? "See your score" : "Next pair", { type: "button" });
        next.onclick = show;
        next.focus();
      };
    };
    show();
  },
};

// The example buttons contain only an image. Give them its name, for screen readers.
function jetNameExample(button) {
  const source = button.querySelector("img")?.src ?? "";
  const words = decodeURIComponent(source.split("/").pop()).replace(/^\d+_|\.\w+$/g, "").replaceAll("_", " ");
  if (words) button.setAttribute("aria-label", `Example: ${words}`);
}

// Gradio names empty outputs, but gives them no role; it puts buttons in links; and its tabs know no arrow keys.
function jetMakeAccessible() {
  document.querySelectorAll("div[aria-label]:not([role])").forEach((element) => element.setAttribute("role", "img"));
  document.querySelectorAll(".download-link button").forEach((button) => (button.tabIndex = -1));
  document.querySelectorAll("[role=tab][aria-controls='']").forEach((tab) => tab.removeAttribute("aria-controls"));
}

function jetMoveBetweenTabs(event) {
  const tabs = jetAddress.tabs().filter((tab) => !tab.disabled && tab.offsetParent);
  const place = tabs.indexOf(event.target);
  const target = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (place < 0 || target === undefined) return;
  event.preventDefault();
  const tab = tabs[(target + tabs.length) % tabs.length];
  tab.focus();
  tab.click();
}

document.addEventListener("keydown", jetMoveBetweenTabs);
document.addEventListener("click", (event) => jetAddress.choose(event), true);
addEventListener("popstate", () => jetAddress.goBack());
// Gradio adds the parts of the page when it needs them, and the tabs react some time after they appear.
const jetOpening = setInterval(() => jetAddress.openTab() && clearInterval(jetOpening), 100);
const jetUpdate = () => {
  document.querySelectorAll("button.gallery-item:not([aria-label])").forEach(jetNameExample);
  document.querySelectorAll(".jet-game:not([data-started])").forEach((element) => jetGame.start(element));
  jetMakeAccessible();
};
new MutationObserver(jetUpdate).observe(document.documentElement, { childList: true, subtree: true });
jetUpdate();
