// The engine behind the page when a server answers: it hashes and searches.

async function asked(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `The server answered with status ${response.status}.`);
  return answer;
}

export const open = () => asked("api/info");
export const now = open;
export const keep = null;
export const duplicates = () => asked("api/duplicates");
export const renew = async () => {};

const given = (filters) => Object.entries(filters).filter(([, value]) => value !== null && value !== "");

export const browse = (filters) => asked(`api/pictures?${new URLSearchParams(given(filters))}`);

export function search({ file, id, ...filters }, signal) {
  const form = new FormData();
  if (file) form.append("file", file, file.name || "picture");
  else form.append("id", id);
  for (const [name, value] of given(filters)) form.append(name, value);
  return asked("api/search", { method: "POST", body: form, signal });
}

export const thumbnail = async (id) => `thumbnail/${id}`;

export const original = (id) => `original/${id}`;
// Where a browser can't show the original.
export const preview = (id) => `preview/${id}`;
