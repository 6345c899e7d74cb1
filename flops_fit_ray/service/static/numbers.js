// Numbers for people, as the server writes them.
"use strict";

const count = (value) => {
  for (const [limit, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= limit * 0.9995) return Number((value / limit).toPrecision(3)) + unit;
  }
  return String(Number(value.toPrecision(3)));
};
const flops = (value) => Number(value.toPrecision(3)).toExponential().replace("+", "");
const plain = (value) => String(Number(value.toPrecision(4)));
const small = (value) => (value < 0.01 ? flops(value) : plain(value));
