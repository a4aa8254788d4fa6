if not inc then return redis.error_reply('NOHELLO this queue is new to the server') end
