"""How time and memory of the top-k grow with the number of input features, ours and the reference.

    python benchmarks/scaling.py --out out/scaling

Random layers of d_in 256 and d_mlp 1024 with 512 outputs; see `sweep.py`. The reference runs on 4 batches of outputs,
and its time is scaled up. Writes scaling.json, and scaling.html, a figure of plotly.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import sweep
from plotly.subplots import make_subplots

SIZES = (512, 1024, 2048, 4096)
N_OUTPUTS = 512
COLOURS = {"ours": "#1f77b4", "reference": "#d62728"}


def figure(rows: list[dict[str, Any]]) -> go.Figure:
    """Time of an output and peak memory over d_sae, both axes logarithmic."""
    titles = ("milliseconds an output", "peak memory, GB")
    drawn = make_subplots(rows=1, cols=2, subplot_titles=titles)
    sizes = [row["d_sae_in"] for row in rows]
    for side, colour in COLOURS.items():
        line = {"color": colour}
        times = [1e3 * row[f"{side}_s"] / N_OUTPUTS for row in rows]
        drawn.add_scatter(x=sizes, y=times, name=side, line=line, row=1, col=1)
        memory = [row[f"{side}_gb"] for row in rows]
        drawn.add_scatter(x=sizes, y=memory, name=side, line=line, showlegend=False, row=1, col=2)
    limit = [1e3 * row["limit_s"] / N_OUTPUTS for row in rows]
    drawn.add_scatter(
        x=sizes, y=limit, name="limit of the machine", line={"color": "grey", "dash": "dot"}, row=1, col=1
    )
    drawn.update_xaxes(type="log", tickvals=sizes, title_text="input features")
    drawn.update_yaxes(type="log", dtick=1)
    drawn.update_layout(template="plotly_white", width=900, height=380, margin={"t": 40, "b": 50})
    return drawn


def main() -> None:
    """Measure each size, print the table, write numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", required=True, help="folder for scaling.json and scaling.html")
    arguments = parser.parse_args()
    asked = argparse.Namespace(full=False, device=arguments.device, outputs=N_OUTPUTS, precision=None)
    rows = []
    for n in SIZES:
        rows.append(sweep.compare("topk", f"random-{n}", asked) | {"d_sae_in": n})
        print(sweep.table(rows[-1:]).splitlines()[1], file=sys.stderr, flush=True)
    print(sweep.table(rows))
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps({"machine": sweep.machine(arguments.device), "rows": rows}, indent=1))
    figure(rows).write_html(out / "scaling.html", include_plotlyjs=True)


if __name__ == "__main__":
    main()
