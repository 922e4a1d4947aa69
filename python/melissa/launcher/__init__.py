"""The launcher: submits the server and the clients that it asks for, watches all of them, shows the study."""
