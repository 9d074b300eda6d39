// The OpenAPI description as a page: readable without a network, and under the same policy as the rest.

const spec = await (await fetch("openapi.json")).json();
const docs = document.getElementById("docs");

function make(tag, text = "", ...children) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
}

const find = (schema) => (schema?.$ref ? schema.$ref.split("/").slice(1).reduce((at, key) => at[key], spec) : schema) ?? {};

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.filter((s) => s.type !== "null").map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  const file = schema.format === "binary" || schema.contentMediaType;
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const range = low === undefined ? "" : schema.maximum > 1e15 ? ` from ${low}` : ` ${low} to ${schema.maximum}`;
  return (file ? "file" : schema.type ?? "anything") + range;
}

function table(rows) {
  const body = make("tbody", "", ...rows.map((row) => make("tr", "", ...row.map((cell, i) => make("td", "", make(i ? "span" : "code", cell))))));
  const box = make("div", "", make("table", "", body));
  box.className = "scroll";
  return box;
}

const fields = (schema) => {
  const whole = find(schema);
  return Object.entries(whole.properties ?? {}).map(([name, field]) => [
    name,
    kind(field) + (field.default != null ? `, usually ${field.default}` : ""),
    field.description ?? (whole.required?.includes(name) ? "" : "may be left out"),
  ]);
};

function example(method, path, form) {
  const address = location.origin + path.replace(/\{\w+\}/g, "1");
  return form ? `curl -F file=@picture.jpg -F k=20 ${address}` : `curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${address}`;
}

function operation(path, method, what) {
  const section = make("section", "", make("h2", "", make("b", method.toUpperCase()), make("code", path)), make("p", what.description ?? what.summary));
  const form = Object.values(what.requestBody?.content ?? {})[0]?.schema;
  const asked = [
    ...(what.parameters ?? []).map((p) => [p.name, kind(p.schema), p.description ?? `in the ${p.in}`]),
    ...(form ? fields(form) : []),
  ];
  if (asked.length) section.append(make("h3", form ? "Form fields (multipart/form-data)" : "Parameters"), table(asked));
  for (const [status, answer] of Object.entries(what.responses).filter(([status]) => status < 400)) {
    const [type, content] = Object.entries(answer.content ?? {})[0] ?? ["", {}];
    section.append(make("h3", `${status}: ${type}`));
    if (content.schema) section.append(table(fields(content.schema)));
  }
  section.append(make("h3", "Example"), make("pre", example(method, path, form)));
  return section;
}

docs.append(make("h1", `${spec.info.title}: API`), make("p", spec.info.description));
for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, what] of Object.entries(methods)) docs.append(operation(path, method, what));
}
const schemas = { Result: "Result", Example: "Example", Copy: "Copy, in groups", Failure: "Status 400 and above" };
for (const [name, title] of Object.entries(schemas)) {
  docs.append(make("section", "", make("h2", title), table(fields(spec.components.schemas[name]))));
}
