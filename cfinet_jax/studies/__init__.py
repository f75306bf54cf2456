"""Commands that compare, count or measure: ablations, analysis of data, cost of a step."""
