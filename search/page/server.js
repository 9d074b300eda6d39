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

export function search({ file, id, k, radius, folder }, signal) {
  const form = new FormData();
  if (file) form.append("file", file, file.name || "picture");
  else form.append("id", id);
  form.append("k", k);
  if (radius !== null) form.append("radius", radius);
  if (folder) form.append("folder", folder);
  return asked("api/search", { method: "POST", body: form, signal });
}

export const thumbnail = async (id) => `thumbnail/${id}`;

export const original = (id) => `original/${id}`;
