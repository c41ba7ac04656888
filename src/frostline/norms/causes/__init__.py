"""One file for each family of causes; each rule takes the evidence and returns a row, or nothing."""

from frostline.norms.causes.verdict import judge as judge
