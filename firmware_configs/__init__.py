"""Settings of known boards, one TOML file each."""
