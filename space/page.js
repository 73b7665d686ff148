() => {
  // The example buttons contain only an image. Give them its name, for screen readers.
  const name = (button) => {
    const source = button.querySelector("img")?.src ?? "";
    const words = decodeURIComponent(source.split("/").pop()).replace(/^\d+_|\.\w+$/g, "").replaceAll("_", " ");
    if (words) button.setAttribute("aria-label", `Example: ${words}`);
  };
  const nameAll = () => document.querySelectorAll("button.gallery-item:not([aria-label])").forEach(name);
  new MutationObserver(nameAll).observe(document.body, { childList: true, subtree: true });
  nameAll();
}
