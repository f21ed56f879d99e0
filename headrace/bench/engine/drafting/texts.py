"""Texts that prompts of `headrace bench speculation` are about, as users send them, and questions."""

from __future__ import annotations

PASSAGES = (
    "The mill stands where the stream leaves the valley. A channel of oak boards takes the water from a weir "
    "two hundred metres above the house and leads it along the slope to the wheel. In dry summers the miller "
    "closes the weir at night, so that the pond fills until the morning. The wheel drives two pairs of stones "
    "and, since 1921, a small generator, which lights the house and charges the batteries of the neighbouring "
    "farms.",
    "Our support team answers most tickets within four hours on working days. Urgent tickets go to the "
    "engineer on duty, who is called by telephone. If a ticket needs a change in the product, the team opens "
    "an issue, links it to the ticket and tells the customer in which release the change will appear. Tickets "
    "without an answer from the customer are closed after fourteen days, and can be opened again at any time.",
    "The city council has decided to close the bridge over the river for repairs from March to September. "
    "Cars will be led over the northern bridge, which adds about ten minutes to the way to the station. "
    "Cyclists and walkers may use a ferry, which runs every quarter of an hour between six in the morning and "
    "ten at night. The repairs cost nine million, of which the state pays two thirds.",
    "Before you clean the machine, switch it off and pull the plug. Empty the water tank and let the machine "
    "cool down for thirty minutes. Remove the filter, rinse it under warm water and let it dry. Wipe the "
    "housing with a soft cloth. Never put parts of the machine into a dishwasher. When all parts are dry, put "
    "the filter back, fill the tank with fresh water and run the machine once without coffee.",
)
QUESTIONS = (
    "What should I cook for six guests tonight?",
    "Explain to a child why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "How do I prepare for a job interview?",
    "What is the difference between a virus and a bacterium?",
    "Give me ideas for a rainy weekend.",
    "Write a polite letter to my landlord about a broken heater.",
    "How does a sailing boat move against the wind?",
)
ARTICLES = (
    "The harbour of Port Ellis will be closed to ships of more than 200 metres from 1 October, the port"
    " authority said on Monday. Divers found cracks in the eastern wall, which was built in 1958 and is"
    " 640 metres long. The authority expects that the repair takes eleven months and costs 74 million "
    "dollars. About 120 large ships call at Port Ellis each year, most of them with grain. Until the "
    'repair is finished, they will be sent to Grantham, 85 kilometres to the north. "We had no choice,"'
    ' said the director of the port, Helen Brandt. "Safety comes before business." The union of dock '
    "workers fears for 300 jobs. Its chairman, Paul Reyes, asked the government to pay for the lost "
    "wages. The minister of transport, Anna Lind, said that her ministry would answer within two weeks."
    " Grain traders said that the detour would add about four dollars to each tonne.",
    "Scientists of the University of Halden have found a way to store heat in sand for months. In a "
    "tower of 22 metres, they heated 180 tonnes of sand to 600 degrees with power from a wind farm. "
    "After three months, 71 percent of the heat was still there. The project was led by Professor "
    'Ingrid Solberg and cost 3.2 million crowns. "Sand is cheap, and it does not burn," said Solberg. '
    "The town of Halden will use the heat for its swimming hall from next winter. A larger tower, with "
    "2,000 tonnes of sand, is planned for 2027. It is to heat 400 homes. Critics say that the pumps use"
    " too much power. The engineer Lars Dahl, who built the pumps, answered that they use only 4 "
    "percent of the stored energy.",
)
MINUTES = (
    "Attendees: Maria Lopez (chair), Jan de Vries, Priya Nair, Tom Becker\n"
    "Maria opened the meeting at 9:30. The budget for the new warehouse in Rotterdam is 2.4 million "
    "euros, of which 1.1 million have been spent. Jan reported that the roof will be finished on 14 "
    "March, two weeks later than planned, because the steel beams arrived late. Priya said that the "
    "software for the loading docks passed its tests, and that training for 35 employees begins on 2 "
    "April. Tom asked for another 80,000 euros for fire doors, as the fire department of Rotterdam "
    "requires them. Maria approved the amount. Jan will send the new schedule to all suppliers by "
    "Friday. Priya will book rooms for the training. Tom will order the fire doors from Hansen & Sons. "
    "The next meeting is on 21 February at 10:00 in room 4.12.",
    "Attendees: Dr. Alice Morgan, Ben Carter, Yuki Tanaka, Omar Haddad\n"
    "Alice presented the results of the trial with 214 patients. The new dressing shortened healing "
    "from 19 to 13 days on average. Ben pointed out that 12 patients left the trial early, most of them"
    " at the clinic in Leeds. Yuki checked the data from Leeds and found that the dressings had been "
    "stored too warm. Omar proposed to repeat the trial in Leeds with 40 patients and a logger in each "
    "box. The group agreed. Alice will write to the ethics committee by 5 June. Ben will order 60 "
    "temperature loggers, which cost 18 pounds each. Yuki will visit Leeds on 11 June. Omar will inform"
    " the sponsor, Brightwell Medical. The group meets again on 20 June at 14:00.",
)
MAILS = (
    "From: Karen Whitfield\n"
    "To: Support\n"
    "Subject: Order 48213 arrived damaged\n"
    "\n"
    "Hello, my order 48213 arrived yesterday, on 6 May. It contains two oak shelves (article 7731) and "
    "one lamp (article 2204). One shelf has a long scratch on its front, and the glass of the lamp is "
    "broken. I paid 189.90 by card. I would like a new lamp and a refund for the shelf, or a new shelf."
    " I am at home on Tuesday and Thursday after 16:00. My address has changed: 12 Mill Lane, Ashford. "
    "Kind regards, Karen Whitfield",
    "From: Luis Ortega\n"
    "To: Facilities\n"
    "Subject: Heating in building C\n"
    "\n"
    "Dear colleagues, since Monday the heating in building C, floors 2 and 3, has been off in the "
    "mornings. At 8:00 we measured 15 degrees in room C-214 and 16 degrees in room C-305. About 60 "
    "people work on these floors. The heating starts at around 11:00. We have reported this twice, on 9"
    " and 10 January, under the ticket numbers F-8812 and F-8840. Please have the timer of the heating "
    "checked, and tell us by Wednesday what was found. Until then we would like six electric heaters. "
    "Best regards, Luis Ortega, extension 4471",
)
RELEASES = (
    "Version 4.2.0 (12 March)\n"
    "- New: export of reports as PDF and CSV\n"
    "- New: dark mode, under Settings > Display\n"
    "- Changed: passwords must have at least 12 characters\n"
    "- Changed: the API limit is 600 requests per minute instead of 300\n"
    "- Fixed: the calendar showed the wrong week in January (#1834)\n"
    "- Fixed: uploads of more than 2 GB stopped at 99 % (#1851)\n"
    "- Fixed: crash when a user without a team opened the dashboard (#1860)\n"
    "- Removed: support for Internet Explorer 11\n"
    "- Known problem: on Windows 7, notifications are shown twice\n",
    "Update 7.3 for the payment terminal (2 September)\n"
    "- New: contactless payments of up to 100 euros without a PIN\n"
    "- New: receipts by e-mail; set the address of your shop under Shop > Receipts\n"
    "- Changed: the daily report is printed at 23:30 instead of 22:00\n"
    "- Changed: after three wrong PINs, a card is locked for 24 hours\n"
    "- Fixed: the terminal lost its connection when the router changed its channel (T-2291)\n"
    "- Fixed: tips were missing in the export to Excel (T-2304)\n"
    "- Before the update: print the daily report, and connect the terminal to its charger. The update "
    "takes eight minutes.\n",
)
