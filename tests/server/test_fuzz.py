"""Whatever is asked, the server answers as its own description says, and never with a defect of its own."""



