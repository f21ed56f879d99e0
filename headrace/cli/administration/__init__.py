"""Commands that watch and steer a running installation over the admin port."""
