"""python -m peftlab.bench"""

from ..errors import exit_code
from .command import main

raise SystemExit(exit_code(main))
