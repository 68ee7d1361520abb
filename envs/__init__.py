"""JAX-native environments and adapters; the interface is `envs.base`, names are resolved by `envs.registry`."""
