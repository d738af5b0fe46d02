// The page follows the system's theme until the button chooses another.
{
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const other = () => ((root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark" ? "light" : "dark");
  const name = () => (button.textContent = other() === "dark" ? "Dark theme" : "Light theme");

  button.addEventListener("click", () => {
    root.dataset.theme = other();
    name();
  });
  system.addEventListener("change", name);
  name();
  button.hidden = false;
}
