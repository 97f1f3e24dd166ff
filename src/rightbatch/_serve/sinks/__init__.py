"""Where results go: files, standard output, functions, MQTT; written by threads of their own."""
