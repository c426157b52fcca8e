"""What two or more of the processes need: configuration, wire types, sockets, languages, process life."""
