"""All that is measured of search, part after part, into results/benchmarks/search_*.json: python benchmarks/search.py

    python benchmarks/search.py --run RUN --exports STUDENT STUDENT_FLOAT16 STUDENT_INT8 TEACHER --photos FOLDER

RUN is a student's on CIFAR-10, the exports are its own and its teacher's. Hours on two cores; a part alone, or smaller,
by its own command: search_engines.py, search_page.py, search_bits.py. Keep the machine quiet.
"""

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a student's run")
    parser.add_argument("--exports", type=Path, nargs="+", required=True, help="of the student, and one of its teacher")
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEG files")
    args = parser.parse_args()
    student = ["--student", args.exports[0], "--photos", args.photos]
    parts = {
        "search_engines.py": student,
        "search_page.py": [*student, "--pictures", 1000],
        "search_bits.py": ["--run", args.run, "--exports", *args.exports, "--photos", args.photos],
    }
    for script, words in parts.items():
        subprocess.run([sys.executable, FOLDER / script, *map(str, words)], check=True)


if __name__ == "__main__":
    main()
