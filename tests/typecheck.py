"""How the package's annotations are run under pytest: jaxtyping's shapes, checked by beartype; an int may stand for a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
